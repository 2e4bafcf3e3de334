"""A cache of the SHA-256 of files: unchanged files are not read again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tfgpt.common.atomic_files import read_json, sha256_of_file, sha256_of_json, write_json
from tfgpt.common.errors import TfgptError, UserError
from tfgpt.common.progress import Progress

# A file that changes again within one tick of the clock has the same time. A file that changed less than this long
# before it was hashed is not remembered (git treats its index the same way).
SETTLED_SECONDS = 2.0
SMALLEST_SHOWN_BYTES = 256 * 2**20


class FileHashes:
    """SHA-256 by (path, size, modification and change times, inode), kept as one JSON file for each set of paths.

    Each JSON file is written atomically: of two processes that write it at once, one wins, and both are right.

    Args:
        directory: the folder of the JSON files; None keeps nothing.

    Example:

    >>> from pathlib import Path
    >>> FileHashes().of([Path("/dev/null")])[0][:16]
    'e3b0c44298fc1c14'
    """

    def __init__(self, directory: Path | None = None):
        self.directory = directory

    def of(self, paths: Sequence[Path]) -> list[str]:
        """Returns the hexadecimal SHA-256 of each file, in order."""
        absolute = [os.path.abspath(path) for path in paths]
        memory = self.directory / f"{sha256_of_json(absolute)[:32]}.json" if self.directory else None
        known: dict[str, list] = {}
        with contextlib.suppress(UserError):  # A damaged memory counts as none.
            content = read_json(memory) if memory and memory.is_file() else None
            if isinstance(content, dict) and all(isinstance(one, list) and len(one) == 5 for one in content.values()):
                known = content
        try:
            found = {path: os.stat(path) for path in absolute}
            states = {
                path: [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
                for path, status in found.items()
            }
            result = {path: known[path][-1] for path in states if known.get(path, [])[:-1] == states[path]}
            unknown = {path: state[0] for path, state in states.items() if path not in result}
            shown = sum(unknown.values()) >= SMALLEST_SHOWN_BYTES
            with Progress(sum(unknown.values()), "byte", "hashing", silent=not shown) as progress:
                for path, size in unknown.items():
                    result[path] = sha256_of_file(path)
                    progress.advance(size)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
        # A memory that cannot be written only costs time; the build reports what is wrong with the cache.
        with contextlib.suppress(TfgptError, OSError):
            if unknown and memory:
                newest = (time.time() - SETTLED_SECONDS) * 1e9
                settled = {path: [*state, result[path]] for path, state in states.items() if max(state[1:3]) < newest}
                write_json(memory, settled)
            elif memory:
                os.utime(memory)  # `tfgpt.cache` removes what was not used for long.
        return [result[path] for path in absolute]
