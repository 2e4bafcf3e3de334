"""Deterministic shuffling: the window or the source and row of each row number, without state.

`EpochShuffle` permutes with `RandomIndexShuffle` (the operation of `tf.random.experimental.index_shuffle`), a block
cipher that permutes [0, n) one number at a time, in constant time and memory. It runs 16 rounds: with the 4 of the
public function, permutations under neighbouring seeds correlate. Small epochs are permuted by a table, which is faster
there (docs/measurements.md).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import SettingError

SHUFFLE_ROUNDS = 16
# Epochs of fewer windows are permuted by a table.
SMALL_EPOCH = 1 << 12
# Rows of a block of a mixture.
BLOCK = 1024


class EpochShuffle:
    """The window of each row: an offset and a permutation for every epoch.

    The stream of tokens is a circle. An epoch cuts it into `targets // sequence_length` windows from its own offset
    on, so that every epoch cuts elsewhere and the rest that fills no window differs, and visits them in its own order.

    Args:
        targets, sequence_length: tokens on the circle, and of a window.
        seed: any 64-bit integer.
    """

    def __init__(self, targets: int, sequence_length: int, seed: int):
        self.targets, self.sequence_length, self.seed = targets, sequence_length, seed
        self.windows = targets // sequence_length
        self.offset = functools.lru_cache(maxsize=1024)(self.compute_offset)

    def starts(self, numbers: np.ndarray) -> np.ndarray:
        """Returns where the windows of rows begin, in [0, targets); row numbers and result are int64 [n]."""
        epochs, row_epoch = np.unique(numbers // self.windows, return_inverse=True)
        offsets = np.array([self.offset(int(epoch)) for epoch in epochs], np.int64)
        index = numbers % self.windows
        if self.windows < SMALL_EPOCH:
            orders = np.stack([seeded_permutation(f"order {self.seed} {epoch}", self.windows) for epoch in epochs])
            index = orders[row_epoch, index]
        else:
            # The cipher's key: the low and the high 32 bits of the seed, and the epoch.
            halves = [np.full_like(index, half & 0xFFFFFFFF) for half in (self.seed, self.seed >> 32)]
            key, last = np.stack([*halves, epochs[row_epoch]], axis=1), np.full_like(index, self.windows - 1)
            with tf.device("CPU"):
                shuffled = tf.raw_ops.RandomIndexShuffle(index=index, seed=key, max_index=last, rounds=SHUFFLE_ROUNDS)
            index = shuffled.numpy()
        return (offsets[row_epoch] + index * self.sequence_length) % self.targets

    def compute_offset(self, epoch: int) -> int:
        digest = hashlib.blake2b(f"offset {self.seed} {epoch}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.targets


class Mixture:
    """The source and the row of each row number, for several sources.

    Row number n lies in block `n // BLOCK`. Every block holds each source equally often, by its weight (at least once),
    in its own order, so a source's row count is known without counting from the beginning. Each source has its own
    epochs: its rows in a permuted order, then again in another.

    Args:
        sizes, weights: [sources] rows of each, at least 1, and their shares, adding up to 1.
        seed: any integer.
    """

    def __init__(self, sizes: Sequence[int], weights: np.ndarray, seed: int):
        self.sizes, self.seed = [int(size) for size in sizes], seed
        self.counts = block_counts(weights)
        self.block = functools.lru_cache(maxsize=64)(self.compute_block)

    def row(self, number: int) -> tuple[int, int, int]:
        """Returns the source of a row number, the epoch of that source, and the row in it."""
        source = 0
        if len(self.sizes) > 1:
            block, index = divmod(number, BLOCK)
            sources, ranks = self.block(block)
            source = int(sources[index])
            number = block * int(self.counts[source]) + int(ranks[index])
        epoch, index = divmod(number, self.sizes[source])
        order = seeded_permutation(f"rows {self.seed} {source} {epoch}", self.sizes[source])
        return source, epoch, int(order[index])

    def compute_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each row of a block, and how many rows of it come before in the block: two [BLOCK]."""
        sources = np.repeat(np.arange(len(self.sizes)), self.counts)
        sources = sources[seeded_permutation(f"block {self.seed} {block}", BLOCK)]
        ranks = np.empty(BLOCK, np.int64)
        for source, count in enumerate(self.counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks


def mixture_weights(sizes: Sequence[float], given: Sequence[str] = (), temperature: float = 1.0) -> np.ndarray:
    """Returns the share of each source; the shares add up to 1.

    Args:
        sizes: sizes of the sources, in any unit.
        given: the weights of --mixture, one a source; empty: by size.
        temperature: shares are size^(1/temperature): 1 is by size, infinity gives all the same (mT5,
            arXiv:2010.11934, whose alpha is 1/temperature).
    """
    if given and len(given) != len(sizes):
        raise SettingError("mixture", f"has {len(given)} weights for {len(sizes)} sources of --train_text")
    shares = np.asarray(given or sizes, np.float64)
    if not given:
        shares **= 1 / temperature
    return shares / shares.sum()


def block_counts(weights: np.ndarray) -> np.ndarray:
    """Returns the rows of each source in a block: by largest remainder, at least one each."""
    exact = weights * BLOCK
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    while counts.sum() < BLOCK:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > BLOCK:
        counts[np.argmin(np.where(counts > 1, exact - counts, np.inf))] -= 1
    return counts


@functools.lru_cache(maxsize=64)
def seeded_permutation(seed: str, count: int) -> np.ndarray:
    """Returns a permutation of [0, count): the order of `count` pseudo-random 64-bit numbers."""
    digest = hashlib.shake_256(seed.encode()).digest(8 * count)
    return np.argsort(np.frombuffer(digest, "<u8"), kind="stable")
