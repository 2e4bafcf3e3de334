"""The cache: its folder, its entries, their locks and their removal.

An entry is CACHE/STAGE/HASH. The hash is that of everything that the entry is made from, so that an entry is never
outdated. A process that needs an entry that another one makes waits for it. A read-only cache can be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import platformdirs

from tfgpt.common.atomic_files import disk_size, new_sibling, read_json, recover_leftovers, remove
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.formatting import format_duration
from tfgpt.common.locks import waiting_writer_lock, writer_lock
from tfgpt.common.output_directories import DESCRIPTION, write_description

Opened = TypeVar("Opened")

ENVIRONMENT_VARIABLE = "TFGPT_CACHE_DIR"
LEFTOVER_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class CacheEntry:
    """A file or directory in the cache.

    Attributes:
        path: the file or directory.
        name: STAGE/HASH, as the list shows it.
        text: the sources that it is made from; empty where they are not known.
        size: bytes on disk.
        used: time of the last use, in seconds since the epoch.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     entry = Path(folder, "tokens", "1a2b3c")
    ...     with cached_entry(entry, ["my/*.txt"]):
    ...         entry.mkdir()
    ...     [(entry.name, entry.text) for entry in list_entries(Path(folder))]
    [('tokens/1a2b3c', ('my/*.txt',))]
    """

    path: Path
    name: str
    text: tuple[str, ...]
    size: int
    used: float


def cache_directory(flag: str | None = None) -> Path:
    """Returns the cache folder: --cache_dir, else $TFGPT_CACHE_DIR, else the system's. Does not make it.

    The system's is $XDG_CACHE_HOME/tfgpt or ~/.cache/tfgpt on Linux, ~/Library/Caches/tfgpt on macOS and
    %LOCALAPPDATA%\\tfgpt\\Cache on Windows.
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
        text: the sources that the entry is made from, shown by `tfgpt.cache`.
        open_entry: opens the entry; raises `UserError` when it is damaged.
        make_entry: writes the entry and opens it.
        describe: what the log line says of the opened entry.
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
    """Returns the end of a stage's log line; `started` is the time by `time.monotonic`."""
    return f"made in {format_duration(time.monotonic() - started)}," if made else "reused,"


@contextlib.contextmanager
def cached_entry(entry: Path, text: Iterable[str]) -> Iterator[None]:
    """Locks an entry while the block opens or makes it; afterwards notes its use.

    Where the cache cannot be written, an existing entry is opened without a lock.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(waiting_writer_lock(lock_file(entry), entry))
            recover_leftovers(entry.parent, LEFTOVER_SECONDS)
        except UserError as error:
            if not entry.exists():
                raise SettingError("cache_dir", str(error)) from error
        yield
    with contextlib.suppress(OSError, UserError):
        if entry.is_dir() and not (entry / DESCRIPTION).exists():
            write_description(entry, "cache entry", text=list(text))
        os.utime(entry)


def lock_file(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def list_entries(cache: Path) -> list[CacheEntry]:
    """Returns the entries of the cache, the longest unused first."""
    found = []
    try:
        stages = [folder for folder in cache.iterdir() if folder.is_dir()] if cache.exists() else []
        for path in (path for stage in stages for path in stage.iterdir() if not path.name.startswith(".")):
            text: tuple[str, ...] = ()
            with contextlib.suppress(UserError, AttributeError, TypeError):
                text = tuple(map(str, read_json(path / DESCRIPTION).get("text", ())))
            with contextlib.suppress(FileNotFoundError):  # Another process removed it.
                name = f"{path.parent.name}/{path.name}"
                found.append(CacheEntry(path, name, text, disk_size(path), path.stat().st_mtime))
    except OSError as error:
        raise UserError(f"{cache}: cannot be read ({error.strerror}); give the cache's folder") from error
    return sorted(found, key=lambda entry: entry.used)


def remove_entry(entry: CacheEntry) -> None:
    """Removes an entry. Processes that have it open continue to read it, except on Windows, where it stays."""
    with writer_lock(lock_file(entry.path), entry.path):
        doomed = new_sibling(entry.path, ".tmp")
        try:
            os.rename(entry.path, doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{entry.path}: cannot be removed ({error.strerror})") from error
        remove(doomed)
