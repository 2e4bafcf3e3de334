"""The model directory behind any name of a model: what is none yet is converted once, into the cache.

An entry of the cache is named after the content that it was made from (hashes of files, a hub's revision), so that a
file that changed or moved is never taken for another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tfgpt
from tfgpt.common.adapters import is_adapter, local_base
from tfgpt.common.atomic_files import atomic_directory, read_json, sha256_of_json
from tfgpt.common.model_paths import find_model, no_weights_error
from tfgpt.common.output_directories import list_files, write_description
from tfgpt.conversion.adapter_source import TOKENIZER_FILES, adapter_base
from tfgpt.conversion.hugging_face_source import FILES, download
from tfgpt.conversion.model_writer import write_model_directory
from tfgpt.conversion.sources import open_source
from tfgpt.corpus.cache import cache_directory, cached_entry
from tfgpt.corpus.sources.file_hashes import FileHashes
from tfgpt.tokenization.config import SPECIAL_TOKENS
from tfgpt.tokenization.special_tokens import KEY

FOLDER = "models"
"""Of the cache."""

ENTRY_FORMAT = 1
"""Raised when the same source would be converted to something else."""


def print_note(line: str) -> None:
    """Prints one line for the person at the keyboard."""
    print(line, file=sys.stderr, flush=True)


def model_directory(
    name: str, flag: str = "model", cache_dir: str | None = None, note: Callable[[str], None] = print_note
) -> Path:
    """The model directory, or the adapter's, that a flag means.

    Our own directories are taken as they are. GGUF files, names on the Hugging Face hub, directories of other programs
    and adapters of such bases are converted as `python -m tfgpt.convert` does, into `CACHE/models`, once.

    Args:
        name: as `find_model`'s.
        flag: the flag's name, for messages.
        cache_dir: as --cache_dir.
        note: told, in one line, that something is converted.

    Raises:
        UserError: there is no such model, it is an export, or cannot be converted.
        RunError: the disk is full.
    """
    found = find_model(name, flag)
    if found.kind == "export":
        raise no_weights_error(found, flag)
    if found.kind in ("model directory", "adapter") and is_ours(found.path):
        return found.path
    cache = cache_directory(cache_dir)

    def converted(base: str, flag: str) -> Path:
        return model_directory(base, flag, cache_dir, note)

    if found.kind == "hub name":
        path = download(found.path.as_posix(), flag)
        content: dict[str, Any] = {"hub": found.path.as_posix(), "revision": path.name}
    else:
        path = found.path
        content = {found.kind: hashes_of(path, cache)}
    if is_adapter(path):
        content["base"] = hashes_of(adapter_base(path, converted), cache)
    content |= {"format": ENTRY_FORMAT, "tfgpt": tfgpt.__version__}
    entry = cache / FOLDER / sha256_of_json(content)[:32]
    with cached_entry(entry, [name]):
        if not entry.exists():
            source = open_source(found, flag, converted)
            note(f"Converting {source.kind}, once, to {entry}")
            with atomic_directory(entry) as temporary:
                write_model_directory(source, name, "as_stored", temporary)
                write_description(temporary, "model directory", text=[name], files=list_files(temporary))
    return entry


def lasting_name(name: str) -> str:
    """What an adapter calls its base: a name on the hub, or an absolute path, never an entry of the cache."""
    found = find_model(name)
    return found.path.as_posix() if found.kind == "hub name" else str(found.path.absolute())


def is_ours(directory: Path) -> bool:
    """Whether a model directory, or an adapter's, has a tokenizer of ours, so that it runs as it is."""
    if is_adapter(directory):
        base = local_base(directory)
        return base is not None and is_ours(base) and has_our_tokenizer(directory)
    return has_our_tokenizer(directory)


def has_our_tokenizer(directory: Path) -> bool:
    """Whether the tokenizer in a directory is written by us; so it is where there is none to convert."""
    config = directory / "tokenizer_config.json"
    settings = read_json(config) if config.is_file() else {}
    if isinstance(settings, dict) and KEY in settings:
        return True
    path = directory / "tokenizer.json"
    document = read_json(path) if path.is_file() else {}
    added = document.get("added_tokens") if isinstance(document, dict) else None
    if isinstance(added, list):
        names = {token.get("content") for token in added if isinstance(token, dict)}
        return set(SPECIAL_TOKENS) <= names
    return not any((directory / name).is_file() for name in TOKENIZER_FILES)


def hashes_of(path: Path, cache: Path) -> dict[str, str]:
    """File → SHA-256, of a model's files; what has not changed is not read again."""
    if path.is_file():
        files = [path]
    elif (path / "metadata.json").is_file():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = sorted({file for pattern in FILES for file in path.glob(pattern)})
    hashes = FileHashes(cache / "file_hashes").of(files)
    return {file.relative_to(path).as_posix() if path.is_dir() else "": one for file, one in zip(files, hashes)}
