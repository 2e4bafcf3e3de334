"""Atomic writes of files and directories, readers of JSON, and content hashes."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.did_you_mean import cannot_read
from tfgpt.common.errors import RunError, UserError


@contextlib.contextmanager
def readable_write_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises `RunError` for a full disk, `UserError` where `path` cannot be written (permission, a file in the way)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(f"{path}: the disk is full ({error.strerror}); free some space and run again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise UserError(f"{path}: cannot write here ({error.strerror}); choose another place") from error
        raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary file next to `path`, which is renamed to `path` when the block ends without an exception.

    The file and its folder are synced to disk, so that a power cut leaves the old file or the new one. When the block
    raises, the temporary file is removed and `path` is unchanged. A link stays: its target is replaced.
    """
    path = Path(path).resolve()
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_sibling(path, ".tmp")
        temporary.touch(0o666, exist_ok=False)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Like `atomic_write` for a directory: an existing `path` is replaced only by a complete one.

    For a directory that the user names, use `tfgpt.common.output_directories.result_directory`, which keeps their
    files.
    """
    path = Path(path).resolve()
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_sibling(path, ".tmp")
        temporary.mkdir()
        try:
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                sync(file)
            replace_directory(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def recover_leftovers(folder: Path, min_age: float = 0.0) -> int:
    """Cleans up after processes that were killed while they wrote to this folder.

    What `atomic_directory` had set aside is put back where its replacement is missing; unfinished files and directories
    are deleted.

    Args:
        folder: a folder that no other process writes to now.
        min_age: ignore what changed in the last seconds: another process may write it.

    Returns:
        The deleted bytes.
    """
    newest, freed = time.time() - min_age if min_age else float("inf"), 0
    leftovers = [entry for entry in folder.iterdir() if re.fullmatch(r"\..+\.[a-z0-9_]{8}\.(tmp|old)", entry.name)]
    with readable_write_errors(folder):
        for entry in leftovers:
            with contextlib.suppress(FileNotFoundError):  # Another process recovers it.
                if max(path.stat().st_mtime for path in (entry, *entry.rglob("*"))) > newest:
                    continue
                if entry.suffix == ".old":
                    put_back(folder / entry.name[1:].rsplit(".", 2)[0])
                freed += disk_size(entry)
                remove(entry)
    return freed


def disk_size(path: Path) -> int:
    """Returns the bytes of a file, or of all files below a directory."""
    files = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def write_text(path: str | os.PathLike, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: str | os.PathLike, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table atomically: a line of names, then one line per row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    write_text(path, text.getvalue())


# The beginning of the small file that git writes in place of a large one where git-lfs is not installed.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: str | os.PathLike, first_bytes: bytes | None = None) -> None:
    """Raises `UserError` for a git-lfs pointer in place of a file; ignores a file that cannot be opened."""
    if first_bytes is None:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            first_bytes = file.read(len(LFS_POINTER))
    if (first_bytes or b"").startswith(LFS_POINTER):
        raise UserError(f"{path}: is a git-lfs pointer, not the file itself; run git lfs pull where it was cloned")


def read_json(path: str | os.PathLike) -> Any:
    """Returns the value of a JSON file, with or without a byte-order mark."""
    refuse_pointer(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(cannot_read(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def sha256_of_file(path: str | os.PathLike) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Returns the hexadecimal SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def replace_directory(new: Path, path: Path) -> None:
    if not path.exists():
        os.rename(new, path)
        return
    aside = new_sibling(path, ".old")
    os.rename(path, aside)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(aside, path)
        raise
    # Renamed again: a directory that is deleted only in part must never be put back.
    doomed = aside.with_suffix(".tmp")
    os.rename(aside, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def put_back(path: Path) -> None:
    """Renames a directory back whose replacement was interrupted between the two renames of `replace_directory`."""
    if not path.exists():
        olds = sorted(path.parent.glob(f".{glob.escape(path.name)}.*.old"), key=lambda old: old.stat().st_mtime)
        if olds:
            os.rename(olds[-1], path)


def new_sibling(path: Path, suffix: str) -> Path:
    """Returns an unused path next to `path`; a file made there gets the permissions that the umask allows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def sync(path: Path) -> None:
    """Makes a file's content, or the renames in a directory, survive a power cut; Windows needs it for files only."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
