"""Finds the model directory of any model name. Models in other formats are converted once, into the cache.

Cache entries are keyed by content (hashes of files, the revision on the hub), not by path.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tfgpt
from tfgpt.common.adapters import is_adapter, local_base
from tfgpt.common.atomic_files import atomic_directory, read_json, sha256_of_json
from tfgpt.common.model_paths import find_model, no_weights_error
from tfgpt.common.output_directories import list_files, write_description
from tfgpt.conversion.hugging_face_source import FILES, download
from tfgpt.conversion.open_source import TOKENIZER_FILES, adapter_base, open_source
from tfgpt.corpus.cache import cache_directory, cached_entry
from tfgpt.corpus.sources.file_hashes import FileHashes
from tfgpt.tokenization.special_tokens import KEY, SPECIAL_TOKENS

ENTRY_FORMAT = 1
"""Version of the conversion: a higher number invalidates the cached entries."""


def model_directory(
    name: str, flag: str = "model", cache_dir: str | None = None, log: Callable[[str], None] | None = None
) -> Path:
    """Returns the model directory, or the adapter's directory, that a flag names.

    Model directories written by tfgpt are returned unchanged. GGUF files, names on the Hugging Face hub, directories of
    other programs and adapters of such bases are converted into `CACHE/models` as by `python -m tfgpt.convert`.

    Args:
        name: a model name that `find_model` takes.
        log: receives one line when a model is converted; None: prints it to standard error.
    """
    found = find_model(name, flag)
    if found.kind == "export":
        raise no_weights_error(found, flag)
    if found.kind in ("model directory", "adapter") and is_ours(found.path):
        return found.path
    cache = cache_directory(cache_dir)

    def convert_base(base: str, flag: str) -> Path:
        return model_directory(base, flag, cache_dir, log)

    if found.kind == "hub name":
        path = download(found.path.as_posix(), flag)
        content: dict[str, Any] = {"hub": found.path.as_posix(), "revision": path.name}
    else:
        path = found.path
        content = {found.kind: hashes_of(path, cache)}
    if is_adapter(path):
        content["base"] = hashes_of(adapter_base(path, convert_base), cache)
    content |= {"format": ENTRY_FORMAT, "tfgpt": tfgpt.__version__}
    entry = cache / "models" / sha256_of_json(content)[:32]
    with cached_entry(entry, [name]):
        if not entry.exists():
            source = open_source(found, flag, convert_base)
            (log or functools.partial(print, file=sys.stderr, flush=True))(
                f"Converting {source.description}, once, to {entry}"
            )
            with atomic_directory(entry) as temporary:
                source.write(name, "as_stored", temporary)
                write_description(temporary, "model directory", text=[name], files=list_files(temporary))
    return entry


def stored_base_name(name: str) -> str:
    """Returns the name to store in an adapter for its base: a hub name or an absolute path, not a cache entry."""
    found = find_model(name)
    return found.path.as_posix() if found.kind == "hub name" else str(found.path.absolute())


def is_ours(directory: Path) -> bool:
    """Returns whether a model directory, or an adapter with its base, has a tokenizer written by tfgpt, or none."""
    if is_adapter(directory):
        base = local_base(directory)
        if base is None or not is_ours(base):
            return False
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
    if path.is_file():
        files = [path]
    elif (path / "metadata.json").is_file():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = sorted({file for pattern in FILES for file in path.glob(pattern)})
    hashes = FileHashes(cache / "file_hashes").of(files)
    return {file.relative_to(path).as_posix() if path.is_dir() else "": one for file, one in zip(files, hashes)}
