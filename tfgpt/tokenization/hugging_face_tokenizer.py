"""Tokenizers of Hugging Face model directories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.tokenization.load import load_tokenizer, read_tokenizer_config
from tfgpt.tokenization.sentencepiece_tokenizer import FILE, pretrained_sentencepiece
from tfgpt.tokenization.special_tokens import KEY, SPECIAL_TOKENS, choose_special_tokens, token_name
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import added_token, bpe_document, lossy_reason, read_document


def load_hugging_face_tokenizer(directory: Path, model_type: str, stop_ids: Iterable[int] = ()) -> Tokenizer:
    """Loads the tokenizer of a model directory, written by tfgpt or by another program."""
    config = read_tokenizer_config(directory)
    if KEY in config:
        return load_tokenizer(directory)
    path = directory / "tokenizer.json"
    model = directory / FILE
    if model.is_file() and not (path.is_file() and lossy_reason(read_json(path), every_byte=False) is None):
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        try:
            return pretrained_sentencepiece(
                model.read_bytes(), str(model), config, stop_ids, _added_tokens(directory), text
            )
        except (ValueError, KeyError) as error:
            raise UserError(f"{directory}: {error}") from error
    if path.is_file():
        document = read_document(path, complete=False)
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        document = _read_vocabulary_and_merges(directory, model_type)
    else:
        raise UserError(f"{directory}: there is no tokenizer in it (tokenizer.json)")
    specials = {token["content"]: token["id"] for token in document["added_tokens"] if token["special"]}
    if set(SPECIAL_TOKENS) <= set(specials):
        return load_tokenizer(directory)  # It was trained by tfgpt.
    try:
        roles = choose_special_tokens(
            specials,
            end=token_name(config.get("eos_token")),
            padding=token_name(config.get("pad_token")),
            start_of_text=_first_special(document.get("post_processor")),
            chat_template=str(config.get("chat_template", "")),
            stop_ids=stop_ids,
        )
    except ValueError as error:
        raise UserError(f"{directory}: {error}") from error
    # Other classes of transformers replace the pre-tokenizer of the file with their own.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return Tokenizer(document, str(path), roles, config)


def read_merges(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return [line.split(" ") for line in lines if line and not line.startswith("#version")]


def _added_tokens(directory: Path) -> dict[str, int]:
    """Returns name → id of the tokens that any file lists as added to the vocabulary."""
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


def _first_special(post_processor: Mapping[str, Any] | None) -> str | None:
    if not post_processor:
        return None
    for step in post_processor.get("processors", [post_processor]):
        if step.get("type") == "TemplateProcessing" and step["single"]:
            first = step["single"][0].get("SpecialToken")
            return first["id"] if first else None
    return None


def _read_vocabulary_and_merges(directory: Path, model_type: str) -> dict[str, Any]:
    family = "qwen2" if model_type in ("qwen2", "qwen3") else "gpt2"
    vocabulary, merges = read_json(directory / "vocab.json"), read_merges(directory / "merges.txt")
    added_path = directory / "added_tokens.json"
    added = read_json(added_path) if added_path.is_file() else {}
    if "<|endoftext|>" in vocabulary:
        added["<|endoftext|>"] = vocabulary["<|endoftext|>"]
    tokens = [added_token(number, name) for name, number in sorted(added.items(), key=lambda item: item[1])]
    return bpe_document(family, vocabulary, merges, tokens)
