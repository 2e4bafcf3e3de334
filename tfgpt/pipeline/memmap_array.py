"""A one-dimensional array in several files, read through memory maps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# A map costs a file descriptor; 1,024 are usual for a process, and a terabyte is 500 shards.
MAPS_OPEN = 256


class MemmapArray:
    """The concatenation of raw little-endian files, read as one array.

    `windows` treats the array as a circle: the second number follows the last one. (The first and the last token of
    token shards are both end-of-text, so the last document joins the first as any two others are joined.)
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], dtype: np.dtype | type | str):
        self.paths = tuple(paths)
        self.dtype = np.dtype(dtype)
        # First position of each file, and the end: (files + 1)
        self.offsets = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
        self.file = functools.lru_cache(maxsize=MAPS_OPEN)(lambda file: memory_map(self.paths[file], self.dtype))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, key: int | slice) -> np.ndarray | np.generic:
        """Returns a copy of `array[i]` or `array[start:stop]`."""
        if not isinstance(key, slice):
            return self.read(range(len(self))[key], 1)[0]
        start, stop, stride = key.indices(len(self))
        if stride != 1:
            raise ValueError("a MemmapArray is read in slices of stride 1")
        return self.read(start, max(stop - start, 0))

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns windows of `length` numbers, [n, length]; `starts` is int64 [n], each in [0, len(self))."""
        files = np.searchsorted(self.offsets, starts, side="right") - 1
        inside = starts + length <= self.offsets[files + 1]
        if len(self.paths) == 1 and inside.all():
            return self.windows_of_file(0, length)[starts]
        result = np.empty((len(starts), length), self.dtype)
        for file in np.unique(files[inside]):
            chosen = np.flatnonzero(inside & (files == file))
            result[chosen] = self.windows_of_file(int(file), length)[starts[chosen] - self.offsets[file]]
        for row in np.flatnonzero(~inside):
            result[row] = self.read(int(starts[row]), length)
        return result

    def read(self, start: int, length: int) -> np.ndarray:
        """Returns `length` numbers from `start` on, across files and around the circle."""
        pieces = [np.empty(0, self.dtype)]
        while length > 0:
            file = int(np.searchsorted(self.offsets, start, side="right")) - 1
            piece = self.file(file)[start - self.offsets[file] :][:length]
            pieces.append(piece)
            length -= len(piece)
            start += len(piece)
            if start == len(self):
                start = min(1, len(self) - 1)
        return np.concatenate(pieces)

    def windows_of_file(self, file: int, length: int) -> np.ndarray:
        # Overlapping rows of the map, without a copy: (count - length + 1, length)
        return np.lib.stride_tricks.sliding_window_view(self.file(file), length)


def memory_map(path: Path, dtype: np.dtype | str) -> np.ndarray:
    """Returns a file's numbers as a plain array over its memory map; indexing `np.memmap` itself is slower."""
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r"))
