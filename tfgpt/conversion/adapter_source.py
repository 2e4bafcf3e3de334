"""Adapters in PEFT's layout as a source: merged into the model below them, wherever that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfgpt.common.adapters import ADAPTER_CONFIG, named_base
from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import find_model
from tfgpt.conversion.hugging_face_source import download, stop_ids
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.huggingface import open_model
from tfgpt.tokenization.hugging_face_tokenizer import open_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_adapter(directory: Path, converted: Callable[[str, str], Path]) -> Source:
    """An adapter and its base as one model; the sums are made when a weight is read.

    Args:
        directory: the adapter's.
        converted: given what the adapter names as its base and a word for messages, the model directory it is
            converted to.

    Raises:
        UserError: the base is not there, the adapter does not fit it, or it is no plain LoRA adapter.
    """
    base = adapter_base(directory, converted)
    checkpoint = open_model(directory, base=base)
    json = read_json(base / "config.json")
    own = any((directory / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = open_tokenizer(directory if own else base, str(json.get("model_type")), stop_ids(base, json))
    name = named_base(directory)
    kind = f"{directory} (LoRA adapter of {name}, merged)"
    return Source(kind, checkpoint, tokenizer, {"format": "PEFT", "base": name, "model_type": json.get("model_type")})


def adapter_base(directory: Path, converted: Callable[[str, str], Path]) -> Path:
    """The Hugging Face directory below an adapter: one that is here, downloaded or converted.

    Raises:
        UserError: what the adapter names is none of these; the line names adapter_config.json.
    """
    name, path = named_base(directory), directory / ADAPTER_CONFIG
    beside = directory / name
    try:
        found = find_model(str(beside) if beside.exists() and not Path(name).exists() else name, "model")
        if found.kind == "model directory":
            return found.path
        if found.kind == "hub name":
            return download(found.path.as_posix(), "model")
        return converted(found.name, "model")
    except UserError as error:
        problem = str(error).removeprefix("--model: ")
        raise UserError(f"{path}: base_model_name_or_path: {problem}; write there where the model below is") from error
