"""Tokenizers of KerasHub presets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.tokenization.hugging_face_tokenizer import read_merges
from tfgpt.tokenization.sentencepiece_tokenizer import pretrained_sentencepiece
from tfgpt.tokenization.special_tokens import choose_special_tokens
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import added_token, bpe_document

SPECIAL_TOKEN = re.compile(r"<\|[^|]+\|>")

FAMILIES = {"GPT2Tokenizer": "gpt2", "Llama3Tokenizer": "llama3"}
"""Byte-level tokenizers of KerasHub → families of `pretokenizer.FAMILIES`."""

SENTENCEPIECE = ("LlamaTokenizer", "MistralTokenizer")


def load_keras_hub_tokenizer(directory: Path) -> Tokenizer:
    """Loads the tokenizer of a preset directory.

    KerasHub's BytePairTokenizer cuts the texts of all families as GPT-2's does. The result cuts them as the tokenizer
    that the family was trained with.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{directory}: the preset has no tokenizer (tokenizer.json); save the whole task to a preset")
    class_name = read_json(path).get("class_name")
    files = directory / "assets" / "tokenizer"
    config: dict[str, Any]
    if class_name in SENTENCEPIECE:
        model = files / "vocabulary.spm"
        if not model.is_file():
            raise UserError(f"{model}: is missing")
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        config = {"tokenizer_class": "LlamaTokenizer", **names, "legacy": True, "add_bos_token": True}
        try:
            return pretrained_sentencepiece(model.read_bytes(), str(model), config, stop_ids=())
        except (ValueError, KeyError) as error:
            raise UserError(f"{model}: {error}") from error
    if class_name not in FAMILIES:
        known = ", ".join((*FAMILIES, *SENTENCEPIECE))
        raise UserError(f"{path}: class_name {class_name!r} is not supported; supported are {known}")
    family = FAMILIES[class_name]
    vocabulary, merges = read_json(files / "vocabulary.json"), read_merges(files / "merges.txt")
    specials = {name: number for name, number in vocabulary.items() if SPECIAL_TOKEN.fullmatch(name)}
    if family == "llama3":
        vocabulary = {name: number for name, number in vocabulary.items() if name not in specials}
        start, end = "<|begin_of_text|>", "<|end_of_text|>"
    else:
        start, end = None, "<|endoftext|>"
    added = [added_token(number, name) for name, number in sorted(specials.items(), key=lambda item: item[1])]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"bos_token": start or end, "eos_token": end}
    try:
        roles = choose_special_tokens(specials, end=end, start_of_text=start)
        return Tokenizer(bpe_document(family, vocabulary, merges, added), str(path), roles, config)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: its vocabulary is not complete ({error})") from error
