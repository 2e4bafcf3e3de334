"""Manifests: the JSON description of a directory of arrays, with size and SHA-256 of each file.

Opening a directory always checks the format and the size of every file. Files of at most 16 MiB are hashed at every
opening, larger ones once for each (size, modification time, inode), recorded in `verified.json`: hashing a terabyte
takes an hour.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json, sha256_of_file, sha256_of_json, write_json
from tfgpt.common.errors import TfgptError, UserError

MANIFEST = "manifest.json"
VERIFIED = "verified.json"
SMALL_FILE_BYTES = 1 << 24
ADVICE = "delete the directory and prepare the data again with `python -m tfgpt.prepare`"


class DamagedShards(UserError):
    """A directory of shards has no manifest, or its files differ from the manifest."""


def read_manifest(directory: Path, format_name: str, version: int) -> dict[str, Any]:
    """Returns a manifest after checking its format, version and own SHA-256, if any; raises `DamagedShards`."""
    path = directory / MANIFEST
    if not path.is_file():
        raise DamagedShards(f"{directory}: not a directory of {format_name} ({MANIFEST} is missing); {ADVICE}")
    try:
        manifest = read_json(path)
    except UserError as error:
        raise DamagedShards(f"{error}; {ADVICE}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != format_name:
        raise DamagedShards(f'{path}: not a manifest of {format_name} (no "format": "{format_name}"); {ADVICE}')
    found = manifest.get("format_version")
    if found != version:
        raise DamagedShards(f"{path}: format version {found}, this program reads {version}; {ADVICE}")
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if not isinstance(manifest.get("sha256"), dict) and manifest.get("sha256") != sha256_of_json(content):
        raise DamagedShards(f"{path}: changed since it was written (its sha256 differs); {ADVICE}")
    return manifest


def check_files(directory: Path, files: Iterable[Mapping[str, Any]]) -> None:
    """Raises `DamagedShards` for a file that differs from its entry: "file" (its name), "sha256", perhaps "bytes"."""
    recorded: Any = None
    with contextlib.suppress(UserError):
        recorded = read_json(directory / VERIFIED)
    verified = {}
    for file in files:
        path = directory / file["file"]
        try:
            status = path.stat()
        except OSError as error:
            raise DamagedShards(f"{path}: this file is missing; {ADVICE}") from error
        if status.st_size != file.get("bytes", status.st_size):
            raise DamagedShards(f"{path}: has {status.st_size} bytes instead of {file['bytes']}; {ADVICE}")
        identity = [status.st_size, status.st_mtime_ns, status.st_ino]
        large = status.st_size > SMALL_FILE_BYTES
        known = large and isinstance(recorded, dict) and recorded.get(file["file"]) == identity
        if not known and sha256_of_file(path) != file["sha256"]:
            raise DamagedShards(f"{path}: damaged (its sha256 differs from the manifest's); {ADVICE}")
        if large:
            verified[file["file"]] = identity
    if verified and verified != recorded:
        # In a read-only directory the next opening hashes again.
        with contextlib.suppress(TfgptError, OSError):
            write_json(directory / VERIFIED, verified)
