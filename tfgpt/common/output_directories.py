"""The guard of every output directory: nothing of a person's is deleted, and two processes never write one directory.

A directory that a command writes and that outlives the command holds `tfgpt.json`: what it is ("run",
"model directory", …), the format's number, and, where it is replaced as a whole, the names of the files that were
written. What is not written there belongs to a person. So a folder with other files in it is refused before any work,
and an earlier result is replaced as a whole by a whole one only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import atomic_directory, put_back, read_json, readable_write_errors, write_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.locks import writer_lock

# What outlives a command, and the number of its format. Raise a number when older programs would misread what is
# written now; a directory of another number is refused by name.
FORMATS = {
    "run": 1,
    "cache entry": 1,
    "model directory": 1,
    "adapter": 1,
    "prepared data": 1,
    "search": 1,
    "scaling runs": 1,
    "export": 1,
    "serving files": 1,
}
DESCRIPTION = "tfgpt.json"
LOCK = ".tfgpt.lock"
# What a file manager leaves in every folder that a person looks at.
CLUTTER = {".DS_Store", "Thumbs.db", "desktop.ini", ".directory"}


def check_format(directory: str | os.PathLike, kind: str) -> bool:
    """Whether a directory says of itself that it is of this kind; False for one without `tfgpt.json`.

    Raises:
        UserError: it is of this kind in another format, or of another kind.
    """
    path = Path(directory) / DESCRIPTION
    if not path.is_file():
        return False
    content = read_json(path)
    found = content if isinstance(content, dict) else {}
    if found.get("kind") != kind:
        kind_found = with_article(str(found.get("kind") or "folder of another program"))
        raise UserError(f"{directory}: is {kind_found}, not {with_article(kind)}")
    if found.get("format") != FORMATS[kind]:
        raise UserError(
            f"{directory}: is {with_article(kind)} of format {found.get('format')}, and this tfgpt knows format "
            f"{FORMATS[kind]}; use the version of tfgpt that wrote it"
        )
    return True


def with_article(kind: str) -> str:
    """`"run"` → "a run", `"export"` → "an export"."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def write_description(directory: Path, kind: str, **facts: Any) -> None:
    """Writes `tfgpt.json`."""
    write_json(directory / DESCRIPTION, {"kind": kind, "format": FORMATS[kind], **facts})


def check_replaceable(path: str | os.PathLike, kind: str, flag: str, overwrite: bool = False) -> Path:
    """Refuses an output directory that cannot be replaced as a whole, or whose replacement would lose something.

    Args:
        path: as the person wrote it; `~`, trailing slashes and links to folders are understood.
        kind: what will be written, one of `FORMATS`.
        flag: the flag that names the directory.
        overwrite: replace the folder whatever it holds; a place that cannot be replaced is refused all the same.

    Returns:
        The real path.

    Raises:
        SettingError: it is refused; nothing was touched.
    """
    path = Path(path).expanduser()
    real = path.resolve()
    if real.exists() and not real.is_dir():
        raise SettingError(flag, f"{path} is a file; give a folder that is new or empty")
    here = Path.cwd()
    if real == here or real in here.parents:
        raise SettingError(
            flag, f"{path} is the current folder or around it; give a new folder, such as {path / 'new'}"
        )
    if os.path.ismount(real):
        raise SettingError(flag, f"{path} is a mount point, which cannot be replaced; give a folder inside it")
    put_back(real)
    if overwrite or not real.is_dir():
        return real
    if foreign := foreign_names(real, kind, flag):
        raise SettingError(
            flag,
            f"{path} holds files that are not part of an earlier {kind} ({shorten_list(foreign)}); give a folder "
            "that is new or empty, or --overwrite to replace all that is in it",
        )
    return real


def foreign_names(directory: Path, kind: str, flag: str) -> list[str]:
    """What is in a directory and was not written there by an earlier result of this kind."""
    try:
        if not check_format(directory, kind):
            return sorted({entry.name for entry in directory.iterdir()} - CLUTTER)
    except UserError as error:
        raise SettingError(flag, f"{error}; give another folder, or --overwrite to replace it") from error
    return sorted(set(list_files(directory)) - {DESCRIPTION, *read_json(directory / DESCRIPTION).get("files", [])})


def list_files(directory: Path) -> list[str]:
    """The files in a directory and those below it, relative to it, without what file managers leave."""
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.name not in CLUTTER and (path.is_symlink() or not path.is_dir())
    )


def shorten_list(names: list[str]) -> str:
    """The first five names, and how many more there are: "a, b, c, d, e and 2 more"."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextlib.contextmanager
def result_directory(path: str | os.PathLike, kind: str, flag: str, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory that takes the place of `path` as a whole when the block ends well.

    `check_replaceable` guards it, here and, before any work, where a command begins. A lock beside it keeps a second
    writer out.

    Raises:
        UserError: the place is refused, or another process writes it.
        RunError: the disk is full.
    """
    real = check_replaceable(path, kind, flag, overwrite)
    with writer_lock(real.with_name(f".{real.name}{LOCK}"), path, flag), atomic_directory(real) as temporary:
        yield temporary
        write_description(temporary, kind, files=list_files(temporary))
        # Seconds or hours have passed since the first look.
        check_replaceable(path, kind, flag, overwrite)


@contextlib.contextmanager
def working_directory(path: str | os.PathLike, kind: str, flag: str) -> Iterator[Path]:
    """A directory that a command works in and goes on with later (a run, a search), locked for the time of the block.

    What a person adds to it stays: nothing in it is replaced but what the command wrote.

    Raises:
        UserError: it holds other files and no earlier result of this kind, another process writes it, or it cannot be
            written.
        RunError: the disk is full.
    """
    path = make_working_directory(path, kind, flag)
    with writer_lock(path / LOCK, path, flag):
        yield path


def check_not_in_use(path: str | os.PathLike, flag: str) -> None:
    """Refuses a working directory that another process writes now, before any work; `working_directory` locks it.

    Raises:
        DirectoryInUse: so it is; the line names the process.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        with writer_lock(path / LOCK, path, flag):
            pass


def make_working_directory(path: str | os.PathLike, kind: str, flag: str) -> Path:
    """Makes a working directory without locking it, or sees that it is one.

    Returns:
        The path, with `~` expanded.

    Raises:
        UserError: it holds other files and no earlier result of this kind, or it cannot be written.
        RunError: the disk is full.
    """
    path = check_working_directory(path, kind, flag)
    with readable_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    if not (path / DESCRIPTION).is_file():
        write_description(path, kind)
    return path


def check_working_directory(path: str | os.PathLike, kind: str, flag: str) -> Path:
    """Refuses a folder of other files, before any work.

    Returns:
        The path, with `~` expanded.

    Raises:
        SettingError: it is refused; nothing was touched.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise SettingError(flag, f"{path} is a file; give a folder that is new or empty")
    try:
        if not path.is_dir() or check_format(path, kind):
            return path
    except UserError as error:
        raise SettingError(flag, f"{error}; give another folder") from error
    foreign = sorted(
        entry.name for entry in path.iterdir() if entry.name not in CLUTTER and not entry.name.startswith(LOCK)
    )
    if foreign:
        raise SettingError(
            flag,
            f"{path} holds other files ({shorten_list(foreign)}) and no {kind}; give a folder that is new or empty",
        )
    return path
