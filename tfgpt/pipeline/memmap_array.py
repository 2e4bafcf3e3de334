"""One long array that lies in several files, read through memory maps: any window of it, none of it loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# A map costs a file descriptor; 1,024 are usual for a process, and a terabyte is 500 shards.
MAPS_OPEN = 256


class MemmapArray:
    """The concatenation of raw little-endian files, read as if it were one array of `len(stream)` numbers.

    The stream is a circle for windows: behind its last number comes its second one. (Both the first and the last
    token are end-of-text, so that the circle joins the last document to the first as any two others are joined.)

    Args:
        paths: the files in order.
        counts: how many numbers each holds; none of them zero.
        dtype: the type of the numbers, such as uint16.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], dtype: np.dtype | type | str):
        self.paths = tuple(paths)
        self.dtype = np.dtype(dtype)
        # First position of each file, and the end: (files + 1)
        self.offsets = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
        self.mapped = functools.lru_cache(maxsize=MAPS_OPEN)(self.open_map)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, key: int | slice) -> np.ndarray | np.generic:
        """`stream[i]` or `stream[start:stop]`: a copy, in the stream's dtype."""
        if not isinstance(key, slice):
            position = range(len(self))[key]
            return self.run(position, 1)[0]
        start, stop, stride = key.indices(len(self))
        if stride != 1:
            raise ValueError("a token stream is read in slices of stride 1")
        return self.run(start, max(stop - start, 0))

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Windows of `length` numbers, going round the circle.

        Args:
            starts: int64 [n], each in [0, len(stream)).
            length: numbers a window.

        Returns:
            [n, length] in the stream's dtype.
        """
        files = np.searchsorted(self.offsets, starts, side="right") - 1
        inside = starts + length <= self.offsets[files + 1]
        if len(self.paths) == 1 and inside.all():
            return self.rows(0, length)[starts]
        result = np.empty((len(starts), length), self.dtype)
        for file in np.unique(files[inside]):
            chosen = np.flatnonzero(inside & (files == file))
            result[chosen] = self.rows(int(file), length)[starts[chosen] - self.offsets[file]]
        for row in np.flatnonzero(~inside):
            result[row] = self.run(int(starts[row]), length)
        return result

    def run(self, start: int, length: int) -> np.ndarray:
        """`length` numbers from `start` on, across files and round the circle: [length]."""
        pieces = [np.empty(0, self.dtype)]
        while length > 0:
            file = int(np.searchsorted(self.offsets, start, side="right")) - 1
            piece = self.mapped(file)[start - self.offsets[file] :][:length]
            pieces.append(piece)
            length -= len(piece)
            start += len(piece)
            if start == len(self):
                start = min(1, len(self) - 1)
        return np.concatenate(pieces)

    def rows(self, file: int, length: int) -> np.ndarray:
        """Every window that lies within one file, as overlapping rows of its map: [count - length + 1, length]."""
        return np.lib.stride_tricks.sliding_window_view(self.mapped(file), length)

    def open_map(self, file: int) -> np.ndarray:
        """The file's numbers, as a plain array over its memory map (indexing np.memmap itself is slower)."""
        return np.asarray(np.memmap(self.paths[file], self.dtype.newbyteorder("<"), mode="r"))
