"""The tokenizer of a Hugging Face directory: its files, its special tokens, its chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.tokenization.config import SPECIAL_TOKENS
from tfgpt.tokenization.sentencepiece_tokenizer import FILE, SentencePieceTokenizer, foreign_tokenizer
from tfgpt.tokenization.special_tokens import KEY, choose_special_tokens, token_name
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import added_token, byte_level_document, read_document, why_not_lossless


def open_tokenizer(directory: Path, model_type: str, stop_ids: Iterable[int] = ()) -> Tokenizer:
    """The tokenizer of a model directory, of ours or of another program.

    Args:
        directory: the directory.
        model_type: as config.json says.
        stop_ids: what ends a generated text, as its files say.

    Raises:
        UserError: a file is missing, damaged or of a kind that we cannot run; the line names it.
    """
    config = tokenizer_config(directory)
    if KEY in config:
        return Tokenizer.load(directory)
    path = directory / "tokenizer.json"
    if (directory / FILE).is_file() and not (path.is_file() and is_byte_level(path)):
        return open_sentencepiece(directory, config, stop_ids)
    if path.is_file():
        document = read_document(path, complete=False)
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        document = document_of_lists(directory, model_type)
    else:
        raise UserError(f"{directory}: there is no tokenizer in it (tokenizer.json)")
    specials = {token["content"]: token["id"] for token in document["added_tokens"] if token["special"]}
    if set(SPECIAL_TOKENS) <= set(specials):
        return Tokenizer.load(directory)  # One that tfgpt trained.
    names = {identifier: name for name, identifier in specials.items()}
    try:
        roles = choose_special_tokens(
            specials,
            end=token_name(config.get("eos_token")),
            padding=token_name(config.get("pad_token")),
            start_of_text=first_special(document.get("post_processor")),
            chat_template=str(config.get("chat_template", "")),
            more_ends=[names[identifier] for identifier in stop_ids if identifier in names],
        )
    except ValueError as error:
        raise UserError(f"{directory}: {error}") from error
    # transformers' own classes would put their own pre-tokenizer in the place of the file's.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return Tokenizer(document, str(path), roles, config)


def is_byte_level(path: Path) -> bool:
    """Whether a tokenizer.json is written in the byte alphabet; SentencePiece's are not."""
    document = read_json(path)
    return isinstance(document, dict) and why_not_lossless(document, every_byte=False) is None


def open_sentencepiece(directory: Path, config: dict[str, Any], stop_ids: Iterable[int]) -> SentencePieceTokenizer:
    """The tokenizer of a directory with a `tokenizer.model`."""
    reference = directory / "tokenizer.json"
    model, origin = (directory / FILE).read_bytes(), str(directory / FILE)
    text = reference.read_text(encoding="utf-8") if reference.is_file() else None
    try:
        return foreign_tokenizer(model, origin, config, stop_ids, added_tokens(directory), text)
    except (ValueError, KeyError) as error:
        raise UserError(f"{directory}: {error}") from error


def added_tokens(directory: Path) -> dict[str, int]:
    """Tokens that were added to a vocabulary, name → id, wherever they are listed."""
    added: dict[str, int] = {}
    if (directory / "added_tokens.json").is_file():
        added |= read_json(directory / "added_tokens.json")
    if (directory / "tokenizer_config.json").is_file():
        listed = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder", {})
        added |= {token["content"]: int(number) for number, token in listed.items()}
    if (directory / "tokenizer.json").is_file():
        listed = read_json(directory / "tokenizer.json").get("added_tokens") or ()
        added |= {token["content"]: token["id"] for token in listed}
    return added


def tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json with what newer and older versions of transformers keep in files beside it."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file():
            found = read_json(path)
            if not isinstance(found, dict):
                raise UserError(f"{path}: should hold a JSON object")
            config |= found
    # Where each token's options stand is tokenizer.json; what is said twice may contradict itself.
    config.pop("added_tokens_decoder", None)
    config.pop("auto_map", None)
    template = directory / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8-sig")
    return config


def first_special(post_processor: Mapping[str, Any] | None) -> str | None:
    """The special token that a post-processor puts before every text."""
    if not post_processor:
        return None
    for step in post_processor.get("processors", [post_processor]):
        if step.get("type") == "TemplateProcessing" and step["single"]:
            first = step["single"][0].get("SpecialToken")
            return first["id"] if first else None
    return None


def document_of_lists(directory: Path, model_type: str) -> dict[str, Any]:
    """The `tokenizer.json` of a directory that has vocab.json and merges.txt only (GPT-2's first layout, Qwen's)."""
    family = "qwen2" if model_type in ("qwen2", "qwen3") else "gpt2"
    vocabulary, path = read_json(directory / "vocab.json"), directory / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    added_path = directory / "added_tokens.json"
    added = read_json(added_path) if added_path.is_file() else {}
    if "<|endoftext|>" in vocabulary:
        added["<|endoftext|>"] = vocabulary["<|endoftext|>"]
    tokens = [added_token(number, name) for name, number in sorted(added.items(), key=lambda item: item[1])]
    return byte_level_document(family, vocabulary, merges, tokens)
