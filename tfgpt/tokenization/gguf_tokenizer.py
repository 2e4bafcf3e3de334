"""The tokenizer of a GGUF file, out of its metadata: a `tokenizer.json` and a `tokenizer_config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.tokenization.pretrained_pretokenizers import BY_GGUF_NAME
from tfgpt.tokenization.tokenizer_json import added_token, byte_level_document

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""`tokenizer.ggml.token_type` (llama.cpp, `llama_token_type`)."""


def gguf_document(metadata: Mapping[str, Any], long_field: Callable[[str], list[Any]], origin: str) -> dict:
    """The `tokenizer.json` of a GGUF file whose `tokenizer.ggml.model` is "gpt2".

    Args:
        metadata: the file's, without its lists.
        long_field: gives `tokenizer.ggml.tokens` and the other lists.
        origin: what messages call the file.

    Raises:
        UserError: a pre-tokenizer that is not known, or lists that do not fit each other.
    """
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in BY_GGUF_NAME:
        known = ", ".join(BY_GGUF_NAME)
        raise UserError(f"{origin}: tokenizer.ggml.pre={name!r} is not supported; supported are {known}")
    family = BY_GGUF_NAME[name]
    tokens, merges = long_field("tokenizer.ggml.tokens"), long_field("tokenizer.ggml.merges")
    kinds = long_field("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if not tokens or not merges or len(kinds) != len(tokens):
        raise UserError(f"{origin}: its tokenizer is not whole (tokens, merges and token types of one vocabulary)")
    if len(set(tokens)) != len(tokens):
        raise UserError(f"{origin}: two ids have the same token")
    added = [
        {**added_token(identifier, token), "special": kind == CONTROL}
        for identifier, (token, kind) in enumerate(zip(tokens, kinds))
        if kind in (CONTROL, USER_DEFINED)
    ]
    vocabulary = {token: identifier for identifier, token in enumerate(tokens)}
    return byte_level_document(family, vocabulary, [merge.split(" ", 1) for merge in merges], added)


def token_names(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """What `tokenizer_config.json` says: the named tokens and the chat template."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        identifier = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if identifier is not None and identifier < len(tokens):
            config[name] = tokens[identifier]
    if metadata.get("tokenizer.chat_template"):
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def stop_ids(metadata: Mapping[str, Any]) -> list[int]:
    """The ids that end a generated text."""
    keys = ("eot", "eom", "eos")
    found = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys]
    return list(dict.fromkeys(identifier for identifier in found if identifier is not None))


def begins_with_start(metadata: Mapping[str, Any]) -> bool:
    """Whether every text begins with the bos token: as it says, else as llama.cpp's default for the pre-tokenizer."""
    default = BY_GGUF_NAME.get(metadata.get("tokenizer.ggml.pre", "")) == "llama3"
    default = default or metadata.get("tokenizer.ggml.model") == "llama"
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))
