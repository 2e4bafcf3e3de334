"""Guards of output directories: a user's files are never deleted, and one process at a time writes a directory.

A directory that a command writes holds `tfgpt.json`: its kind ("run", "model directory", …), the format's number, and,
where it is replaced as a whole, the names of the written files. All other files belong to the user: a folder with such
files is refused before any work, and only a complete result replaces an earlier one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import atomic_directory, put_back, read_json, readable_write_errors, write_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.locks import writer_lock

# The kinds of directories and the numbers of their formats. Increase a number when older programs would misread the
# new format; a directory of another number is refused.
FORMATS = {
    **{"run": 1, "search": 1, "scaling runs": 1, "cache entry": 1, "prepared data": 1},
    **{"model directory": 1, "adapter": 1, "export": 1, "serving files": 1},
}
DESCRIPTION = "tfgpt.json"
LOCK = ".tfgpt.lock"
# Files that file managers leave in every folder they show.
CLUTTER = {".DS_Store", "Thumbs.db", "desktop.ini", ".directory"}


def check_format(directory: str | os.PathLike, kind: str) -> bool:
    """Returns whether a directory has a description of this kind; raises `UserError` for another kind or format."""
    path = Path(directory) / DESCRIPTION
    if not path.is_file():
        return False
    content = read_json(path)
    found = content if isinstance(content, dict) else {}
    if found.get("kind") != kind:
        found_kind = with_article(str(found.get("kind") or "folder of another program"))
        raise UserError(f"{directory}: is {found_kind}, not {with_article(kind)}")
    if found.get("format") != FORMATS[kind]:
        raise UserError(
            f"{directory}: is {with_article(kind)} of format {found.get('format')}, and this tfgpt knows format "
            f"{FORMATS[kind]}; use the version of tfgpt that wrote it"
        )
    return True


def write_description(directory: Path, kind: str, **metadata: Any) -> None:
    """Writes `tfgpt.json`."""
    write_json(directory / DESCRIPTION, {"kind": kind, "format": FORMATS[kind], **metadata})


@contextlib.contextmanager
def result_directory(path: str | os.PathLike, kind: str, flag: str, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary directory that replaces `path` when the block ends without an exception.

    `check_replaceable` guards it before and after the block; a lock keeps a second writer out.
    """
    real = check_replaceable(path, kind, flag, overwrite)
    with writer_lock(real.with_name(f".{real.name}{LOCK}"), path, flag), atomic_directory(real) as temporary:
        yield temporary
        write_description(temporary, kind, files=list_files(temporary))
        # The user may have added files since the first check.
        check_replaceable(path, kind, flag, overwrite)


def check_replaceable(path: str | os.PathLike, kind: str, flag: str, overwrite: bool = False) -> Path:
    """Returns the real path; raises `SettingError` where it cannot be replaced or holds a user's files."""
    path = check_folder(path, flag)
    real, here = path.resolve(), Path.cwd()
    if real == here or real in here.parents:
        problem = f"{path} is the current folder or around it; give a new folder, such as {path / 'new'}"
        raise SettingError(flag, problem)
    if os.path.ismount(real):
        raise SettingError(flag, f"{path} is a mount point, which cannot be replaced; give a folder inside it")
    put_back(real)
    if overwrite or not real.is_dir():
        return real
    try:
        if check_format(real, kind):
            written = read_json(real / DESCRIPTION).get("files", [])
            foreign = sorted({*list_files(real)} - {DESCRIPTION, *written})
        else:
            foreign = foreign_entries(real)
    except UserError as error:
        raise SettingError(flag, f"{error}; give another folder, or --overwrite to replace it") from error
    if foreign:
        raise SettingError(
            flag,
            f"{path} holds files that are not part of an earlier {kind} ({shorten_list(foreign)}); give a folder "
            "that is new or empty, or --overwrite to replace all that is in it",
        )
    return real


def list_files(directory: Path) -> list[str]:
    """Returns the files below a directory, relative to it, without file managers' files."""
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.name not in CLUTTER and (path.is_symlink() or not path.is_dir())
    )


@contextlib.contextmanager
def working_directory(path: str | os.PathLike, kind: str, flag: str) -> Iterator[Path]:
    """Makes and locks a directory that a command continues to work in later (a run, a search); user's files stay."""
    path = make_working_directory(path, kind, flag)
    with writer_lock(path / LOCK, path, flag):
        yield path


def check_not_in_use(path: str | os.PathLike, flag: str) -> None:
    """Raises `DirectoryInUse` when another process writes a working directory now."""
    path = Path(path).expanduser()
    if path.is_dir():
        with writer_lock(path / LOCK, path, flag):
            pass


def make_working_directory(path: str | os.PathLike, kind: str, flag: str) -> Path:
    """Makes a working directory where it is missing, without locking it; returns its path with `~` expanded."""
    path = check_working_directory(path, kind, flag)
    with readable_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    if not (path / DESCRIPTION).is_file():
        write_description(path, kind)
    return path


def check_working_directory(path: str | os.PathLike, kind: str, flag: str) -> Path:
    """Raises `SettingError` for a folder of other files; returns its path with `~` expanded."""
    path = check_folder(path, flag)
    try:
        if not path.is_dir() or check_format(path, kind):
            return path
    except UserError as error:
        raise SettingError(flag, f"{error}; give another folder") from error
    if foreign := [name for name in foreign_entries(path) if not name.startswith(LOCK)]:
        raise SettingError(
            flag,
            f"{path} holds other files ({shorten_list(foreign)}) and no {kind}; give a folder that is new or empty",
        )
    return path


def with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def check_folder(path: str | os.PathLike, flag: str) -> Path:
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise SettingError(flag, f"{path} is a file; give a folder that is new or empty")
    return path


def foreign_entries(directory: Path) -> list[str]:
    return sorted({entry.name for entry in directory.iterdir()} - CLUTTER)


def shorten_list(names: Sequence[str]) -> str:
    """Returns the first five names and the number of others: "a, b, c, d, e and 2 more"."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
