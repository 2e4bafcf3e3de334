"""Loading tokenizers from files and directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tfgpt.common.adapters import base_directory, is_adapter
from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.tokenization.sentencepiece_tokenizer import FILE, SentencePieceTokenizer
from tfgpt.tokenization.special_tokens import KEY, SpecialTokens
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import read_document


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer of a `tokenizer.json`, of a model, of an adapter (its base model's) or of a run.

    Special tokens that a foreign file lacks are added to it, unless `convert` wrote the directory.

    A directory with a SentencePiece model gives a `SentencePieceTokenizer`.
    """
    path = Path(path).expanduser()
    if (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
        path = path / "model"
    if is_adapter(path) and not (path / "tokenizer.json").is_file():
        path = base_directory(path)
    if (path / FILE).is_file():
        return SentencePieceTokenizer.load(path)
    directory = path if path.is_dir() else path.parent
    config = read_tokenizer_config(directory)
    if KEY not in config:
        tokenizer = Tokenizer(read_document(path), str(path))
        if config.get("chat_template"):
            names = ("chat_template", "bos_token", "eos_token")
            tokenizer.config |= {name: config[name] for name in names if config.get(name)}
        return tokenizer
    document = read_document(path, complete=False)
    try:
        return Tokenizer(document, str(path), SpecialTokens.from_dict(config.pop(KEY)), config)
    except (TypeError, KeyError) as error:
        file = directory / "tokenizer_config.json"
        raise UserError(f"{file}: {KEY}: does not fit {path} ({error})") from error


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Reads `tokenizer_config.json` and the files in which some versions of transformers keep parts of it."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file():
            found = read_json(path)
            if not isinstance(found, dict):
                raise UserError(f"{path}: should hold a JSON object")
            config |= found
    # tokenizer.json has the options of each token; auto_map names code of the model's own repository.
    config.pop("added_tokens_decoder", None)
    config.pop("auto_map", None)
    template = directory / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8-sig")
    return config
