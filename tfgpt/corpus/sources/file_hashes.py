"""SHA-256 of files, remembered: an unchanged file is not read again to learn that it is unchanged."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfgpt.common.atomic_files import read_json, sha256_of_file, sha256_of_json, write_json
from tfgpt.common.errors import TfgptError, UserError
from tfgpt.common.progress import Progress

# A file changed again within one tick of the clock shows the same time. What changed less than this long before it
# was hashed is not remembered (git treats its index the same way).
SETTLED_SECONDS = 2.0
SMALLEST_SHOWN_BYTES = 256 * 2**20


class FileHashes:
    """SHA-256 by (path, size, modification and change times, inode), kept as one JSON file for each set of paths.

    Each file of the memory is written beside and renamed: of two processes that write at once, one wins, and both
    wrote the truth.

    Args:
        directory: where the memory is kept, or None to remember nothing.
    """

    def __init__(self, directory: Path | None = None):
        self.directory = directory

    def of(self, paths: Sequence[Path]) -> list[str]:
        """The hexadecimal SHA-256 of each file, in order.

        Raises:
            UserError: a file cannot be read.
        """
        absolute = [os.path.abspath(path) for path in paths]
        memory = self.directory / f"{sha256_of_json(absolute)[:32]}.json" if self.directory else None
        known = remembered(memory)
        try:
            states = {path: state_of(path) for path in absolute}
            result = {path: known[path][-1] for path in absolute if known.get(path, [])[:-1] == states[path]}
            unknown = [path for path in states if path not in result]
            result.update(zip(unknown, hashed(unknown, [states[path][0] for path in unknown])))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
        if unknown and memory:
            newest = (time.time() - SETTLED_SECONDS) * 1e9
            settled = {path: [*state, result[path]] for path, state in states.items() if max(state[1:3]) < newest}
            # A memory that cannot be written only costs time; the build says what is wrong with the cache.
            with contextlib.suppress(TfgptError, OSError):
                write_json(memory, settled)
        elif memory:
            with contextlib.suppress(OSError):
                os.utime(memory)  # Used now: the cache is emptied of what was not used for long.
        return [result[path] for path in absolute]


def remembered(memory: Path | None) -> dict[str, list]:
    """The memory, or nothing when there is none or it is damaged."""
    if memory is None or not memory.is_file():
        return {}
    with contextlib.suppress(UserError):
        known = read_json(memory)
        if isinstance(known, dict) and all(isinstance(entry, list) and len(entry) == 5 for entry in known.values()):
            return known
    return {}


def state_of(path: str) -> list[int]:
    """What changes when a file does: size, modification time, change time, inode."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def hashed(paths: Iterable[str], sizes: Iterable[int]) -> list[str]:
    """The hashes; a bar is shown when there is much to read."""
    paths, sizes = list(paths), list(sizes)
    if sum(sizes) < SMALLEST_SHOWN_BYTES:
        return [sha256_of_file(path) for path in paths]
    result = []
    with Progress(sum(sizes), "byte", "hashing") as progress:
        for path, size in zip(paths, sizes):
            result.append(sha256_of_file(path))
            progress.advance(size)
    return result
