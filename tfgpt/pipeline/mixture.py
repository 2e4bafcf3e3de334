"""Which source, and which of its rows, each row of training is: a pure function of its number.

Row number n lies in block `n // BLOCK`. Every block holds each source equally often, by its weight (at least once), in
an order of its own; so a source's running number is known without counting from the beginning. Each source has epochs
of its own: its rows in a permuted order, then again in another.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from tfgpt.common.errors import SettingError

BLOCK = 1024


def mixture_weights(sizes: Sequence[float], given: Sequence[str] = (), temperature: float = 1.0) -> np.ndarray:
    """The share of each source, adding up to 1.

    Args:
        sizes: of the sources, in any unit.
        given: the weights that the user wrote, one a source; empty: by size.
        temperature: shares are size^(1/temperature): 1 is by size, infinity gives all the same (mT5,
            arXiv:2010.11934, whose alpha is 1/temperature).

    Raises:
        SettingError: the weights do not fit the sources.
    """
    if not given:
        shares = np.asarray(sizes, np.float64) ** (1 / temperature)
        return shares / shares.sum()
    if len(given) != len(sizes):
        raise SettingError("mixture", f"has {len(given)} weights for {len(sizes)} sources of --train_text")
    weights = np.array([float(weight) for weight in given])
    return weights / weights.sum()


class Mixture:
    """Deals out the rows of several sources.

    Args:
        sizes: [sources] rows of each, at least 1.
        weights: [sources] shares, adding up to 1.
        seed: any integer.
    """

    def __init__(self, sizes: Sequence[int], weights: np.ndarray, seed: int):
        self.sizes, self.seed = [int(size) for size in sizes], seed
        self.counts = block_counts(weights)
        self.order = functools.lru_cache(maxsize=64)(self.computed_order)
        self.permutation = functools.lru_cache(maxsize=64)(self.computed_permutation)

    def row(self, number: int) -> tuple[int, int, int]:
        """Source, epoch of that source, and row in it, of the row with this running number."""
        if len(self.sizes) == 1:
            source, running = 0, number
        else:
            block, place = divmod(number, BLOCK)
            sources, ranks = self.order(block)
            source = int(sources[place])
            running = block * int(self.counts[source]) + int(ranks[place])
        epoch, place = divmod(running, self.sizes[source])
        return source, epoch, int(self.permutation(source, epoch)[place])

    def computed_order(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The sources of a block's rows, and how many rows of the same source stand before each: two [BLOCK]."""
        sources = np.repeat(np.arange(len(self.sizes)), self.counts)
        sources = sources[random_order(f"block {self.seed} {block}", BLOCK)]
        ranks = np.empty(BLOCK, np.int64)
        for source, count in enumerate(self.counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks

    def computed_permutation(self, source: int, epoch: int) -> np.ndarray:
        """The order of a source's rows in an epoch: [rows]."""
        return random_order(f"rows {self.seed} {source} {epoch}", self.sizes[source])


def block_counts(weights: np.ndarray) -> np.ndarray:
    """Rows of each source in a block: by largest remainder, at least one each."""
    exact = weights * BLOCK
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    while counts.sum() < BLOCK:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > BLOCK:
        counts[np.argmin(np.where(counts > 1, exact - counts, np.inf))] -= 1
    return counts


def random_order(name: str, count: int) -> np.ndarray:
    """A permutation of [0, count) by a hash of its name."""
    digest = hashlib.shake_256(name.encode()).digest(8 * count)
    return np.argsort(np.frombuffer(digest, "<u8"), kind="stable")
