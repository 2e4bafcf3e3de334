"""The shared cache folder: one builder at a time for each entry, and no rubbish of stopped ones."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.files import clear_write_errors

try:
    import fcntl
except ImportError:  # not a POSIX system: two builders would do the same work twice, and one of them wins
    fcntl = None  # type: ignore[assignment]

LEFTOVER_SECONDS = 24 * 3600


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Waits until no other process makes `directory`; the lock ends with the block or the process.

    Raises:
        SettingError: the cache folder cannot be written.
        RunError: the disk is full.
    """
    with contextlib.ExitStack() as stack:
        try:
            with clear_write_errors(directory.parent):
                directory.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(directory.parent / f".{directory.name}.lock", "ab"))
        except UserError as error:
            raise SettingError("cache_dir", str(error)) from error
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that makes {directory}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
        yield


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed build left behind under a temporary name, when nothing in it changed for a day."""
    oldest = time.time() - LEFTOVER_SECONDS
    for temporary in (*folder.glob(".*.tmp"), *folder.glob(".*.old")):
        with contextlib.suppress(OSError):
            if temporary.is_file():
                if temporary.stat().st_mtime < oldest:
                    temporary.unlink()
            elif max(path.stat().st_mtime for path in (temporary, *temporary.rglob("*"))) < oldest:
                shutil.rmtree(temporary, ignore_errors=True)
