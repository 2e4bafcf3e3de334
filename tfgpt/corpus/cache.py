"""The cache: where it lies, one builder at a time for each entry, what is in it, and how it is emptied.

An entry lies in CACHE/STAGE/HASH, the hash being that of what it is made from, so that an entry is right or absent.
Two processes that need the same entry at the same time want the same bytes: the second waits for the first and then
reads, instead of ending as a second writer of a run does. A cache that cannot be written is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import platformdirs

from tfgpt.common.atomic_files import new_sibling, read_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.locks import waiting_writer_lock, writer_lock
from tfgpt.common.output_directories import DESCRIPTION, write_description
from tfgpt.common.progress import format_duration

Opened = TypeVar("Opened")

ENVIRONMENT_VARIABLE = "TFGPT_CACHE_DIR"
LEFTOVER_SECONDS = 24 * 3600


def cache_directory(flag: str | None = None) -> Path:
    """The cache folder: --cache_dir, else $TFGPT_CACHE_DIR, else the system's place for caches. Not made by this.

    The system's place is $XDG_CACHE_HOME/tfgpt or ~/.cache/tfgpt on Linux, ~/Library/Caches/tfgpt on macOS and
    %LOCALAPPDATA%\\tfgpt\\Cache on Windows.

    Raises:
        SettingError: the user has no home folder (a container with an unknown user id), and nothing else is given.
    """
    given = flag or os.environ.get(ENVIRONMENT_VARIABLE)
    try:
        return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("tfgpt", appauthor=False))
    except RuntimeError as error:
        raise SettingError(
            "cache_dir", f"this user has no home folder; give a folder, or set {ENVIRONMENT_VARIABLE} or HOME"
        ) from error


def cached_stage(
    name: str,
    entry: Path,
    text: Iterable[str],
    *,
    open_entry: Callable[[], Opened],
    make_entry: Callable[[], Opened],
    describe: Callable[[Opened], str],
    log: Callable[[str], None],
) -> Opened:
    """Opens a cache entry, or makes it when it is missing or damaged, and logs one line about it.

    Other processes that need the entry wait until it is made.

    Args:
        name: the stage, which begins the log lines.
        entry: path of the entry.
        text: the sources that the entry is made from, shown by `tfgpt.cache`.
        open_entry: opens the entry; raises `UserError` when it is damaged.
        make_entry: writes the entry and opens it.
        describe: what the log line says of the opened entry.
        log: receives each log line.
    """
    started = time.monotonic()
    opened = None
    with cached_entry(entry, text):
        if entry.exists():
            try:
                opened = open_entry()
            except UserError as error:
                log(f"{name}: {str(error).split(';')[0]}; making it again")
        made = opened is None
        if opened is None:
            opened = make_entry()
    log(f"{name}: {describe(opened)}; {made_or_reused(made, started)} {entry}")
    return opened


def made_or_reused(made: bool, started: float) -> str:
    """How the line of a stage ends, before the path; `started` is of `time.monotonic`."""
    return f"made in {format_duration(time.monotonic() - started)}," if made else "reused,"


@contextlib.contextmanager
def entry_lock(directory: Path) -> Iterator[None]:
    """Waits until no other process makes `directory`; the lock ends with the block or the process.

    Raises:
        SettingError: the cache folder cannot be written.
        RunError: the disk is full.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(waiting_writer_lock(lock_file(directory), directory))
        except UserError as error:
            raise SettingError("cache_dir", str(error)) from error
        yield


@contextlib.contextmanager
def cached_entry(directory: Path, text: Iterable[str]) -> Iterator[None]:
    """One process at a time makes an entry; the others wait and find it. Afterwards it counts as used now.

    Args:
        directory: the entry.
        text: which text it is made from, for people who look at the cache.
    """
    with contextlib.ExitStack() as stack:
        if not directory.exists() or os.access(directory.parent, os.W_OK):
            stack.enter_context(entry_lock(directory))
            remove_leftovers(directory.parent)
        yield
    mark_used(directory, text)


def mark_used(entry: Path, text: Iterable[str] = ()) -> None:
    """Notes that an entry was used now; in a cache that cannot be written, nothing happens."""
    with contextlib.suppress(OSError, UserError):
        if entry.is_dir() and not (entry / DESCRIPTION).exists():
            write_description(entry, "cache entry", text=list(text))
        os.utime(entry)


def lock_file(entry: Path) -> Path:
    """The file whose lock is the right to make an entry."""
    return entry.with_name(f".{entry.name}.lock")


def remove_leftovers(folder: Path) -> int:
    """Removes what a killed build left behind under a temporary name, when nothing in it changed for a day.

    Returns:
        The bytes that it took.
    """
    oldest, freed = time.time() - LEFTOVER_SECONDS, 0
    for temporary in (*folder.glob(".*.tmp"), *folder.glob(".*.old")):
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime for path in (temporary, *temporary.rglob("*"))) < oldest:
                freed += size_of(temporary)
                shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink()
    return freed


@dataclasses.dataclass(frozen=True)
class CacheEntry:
    """What lies in one place of the cache.

    Attributes:
        path: a directory or a file.
        name: STAGE/HASH, as it is shown and removed.
        text: which text it is made from; empty where it does not say.
        size: bytes on disk.
        used: when it was used last, in seconds since the epoch.
    """

    path: Path
    name: str
    text: tuple[str, ...]
    size: int
    used: float


def list_entries(cache: Path) -> list[CacheEntry]:
    """What is in the cache, the longest unused first.

    Raises:
        UserError: it is not a folder that can be read.
    """
    found = []
    try:
        stages = [folder for folder in cache.iterdir() if folder.is_dir()] if cache.exists() else []
        for path in (path for stage in stages for path in stage.iterdir() if not path.name.startswith(".")):
            with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                name = f"{path.parent.name}/{path.name}"
                found.append(CacheEntry(path, name, text_of(path), size_of(path), path.stat().st_mtime))
    except OSError as error:
        raise UserError(f"{cache}: cannot be read ({error.strerror}); give the cache's folder") from error
    return sorted(found, key=lambda entry: entry.used)


def text_of(entry: Path) -> tuple[str, ...]:
    """Which text an entry is made from, as far as it says."""
    with contextlib.suppress(UserError, AttributeError, TypeError):
        return tuple(map(str, read_json(entry / DESCRIPTION).get("text", ())))
    return ()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    files = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def remove_entry(entry: CacheEntry) -> None:
    """Removes an entry. Processes that have it open go on reading it, except on Windows, where they keep it there.

    Raises:
        DirectoryInUse: a process makes it just now.
        UserError: it cannot be removed.
    """
    with writer_lock(lock_file(entry.path), entry.path):
        doomed = new_sibling(entry.path, ".tmp")
        try:
            os.rename(entry.path, doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{entry.path}: cannot be removed ({error.strerror})") from error
        shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()
