"""The tokenizer of a KerasHub preset: its vocabulary files, cut as the family's own tokenizer cuts.

KerasHub's BytePairTokenizer cuts all families as GPT-2's; the models were trained with their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer, processor_of, special_pieces
from tfgpt.tokenization.special_tokens import choose_special_tokens
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import added_token, byte_level_document

SPECIAL = re.compile(r"<\|[^|]+\|>")
"""What the special tokens of these families look like."""

FAMILIES = {"GPT2Tokenizer": "gpt2", "Llama3Tokenizer": "llama3"}
"""KerasHub's byte-level tokenizers, and the families of `foreign_patterns`."""


def open_preset_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a preset directory.

    Raises:
        UserError: it is missing, damaged, or of a kind that we cannot run.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{directory}: the preset has no tokenizer (tokenizer.json); save the whole task to a preset")
    settings = read_json(path)
    class_name = settings.get("class_name")
    files = directory / "assets" / "tokenizer"
    if class_name in ("LlamaTokenizer", "MistralTokenizer"):
        return sentencepiece_tokenizer(files / "vocabulary.spm")
    if class_name not in FAMILIES:
        known = ", ".join((*FAMILIES, "LlamaTokenizer", "MistralTokenizer"))
        raise UserError(f"{path}: class_name {class_name!r} is not supported; supported are {known}")
    vocabulary = read_json(files / "vocabulary.json")
    try:
        lines = (files / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{files / 'merges.txt'}: cannot be read ({error})") from error
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    specials = {name: number for name, number in vocabulary.items() if SPECIAL.fullmatch(name)}
    family = FAMILIES[class_name]
    ordinary = {name: number for name, number in vocabulary.items() if name not in specials} | (
        {name: number for name, number in specials.items() if family == "gpt2"}
    )
    added = [added_token(number, name) for name, number in sorted(specials.items(), key=lambda item: item[1])]
    start = "<|begin_of_text|>" if family == "llama3" else None
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    end = "<|end_of_text|>" if family == "llama3" else "<|endoftext|>"
    config |= {"bos_token": start or end, "eos_token": end}
    try:
        roles = choose_special_tokens(
            [token["content"] for token in added], end=end, start_of_text=start, more_ends=["<|eot_id|>"]
        )
        document = byte_level_document(family, ordinary, merges, added)
        return Tokenizer(document, str(path), roles, config)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: its vocabulary is not whole ({error})") from error


def sentencepiece_tokenizer(path: Path) -> SentencePieceTokenizer:
    """Llama 2's and Mistral's."""
    if not path.is_file():
        raise UserError(f"{path}: is missing")
    model = path.read_bytes()
    specials = special_pieces(processor_of(model, str(path)))
    try:
        roles = choose_special_tokens(sorted(specials, key=specials.__getitem__), end="</s>", start_of_text="<s>")
        config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return SentencePieceTokenizer(model, str(path), roles, {**config, "legacy": True, "add_bos_token": True})
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}") from error
