"""Batches of objectives: the distribution of readers' batches, and a reader of examples in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from tfgpt.pipeline.batches import BatchReader, MixtureReader, training_batches, validation_batches, validation_steps
from tfgpt.pipeline.shuffling import seeded_permutation
from tfgpt.training.distribution.strategy import distributed
from tfgpt.training.objectives.base import TrainingData, ValidationData


def training_data(
    strategy: tf.distribute.Strategy,
    batch_size: int,
    train: BatchReader,
    validation: BatchReader,
    by_source: Mapping[str, BatchReader] | None = None,
) -> TrainingData:
    """Returns the batches of readers, of `batch_size` row numbers, distributed to the devices of the strategy."""

    def batches(first_step: int) -> Iterable[dict[str, tf.Tensor]]:
        make = functools.partial(training_batches, train, batch_size=batch_size, start_step=first_step)
        return iter(distributed(strategy, make))

    def held_out(reader: BatchReader) -> ValidationData:
        make = functools.partial(validation_batches, reader, batch_size=batch_size)
        return ValidationData(distributed(strategy, make), validation_steps(reader, batch_size))

    return TrainingData(
        batches, held_out(validation), {name: held_out(reader) for name, reader in (by_source or {}).items()}
    )


def describe_shares(names: Iterable[str], reader: MixtureReader, rows: int) -> str:
    """Returns the share of each source in `rows` rows of training, and how often its own rows are read."""
    return "; ".join(
        f"{name} {share:.1%} of the rows, {rows * share / source.num_rows:.2g} times"
        for name, share, source in zip(names, reader.shares, reader.readers)
    )


class ExampleReader(BatchReader):
    """Reads examples that lie in memory.

    Args:
        arrays: name → [examples, …], or [examples, 2, …] for pairs, whose two rows are next to each other in a batch.
        seed: seed of the order of each epoch; None: in order, and then rows after the last example have
            `example_weights` of 0, if there are such.
        pairs: whether the examples are pairs.

    Example:

    >>> reader = ExampleReader({"number": np.arange(4)}, seed=0)
    >>> [sorted(batch["number"].numpy().tolist()) for batch in training_batches(reader, batch_size=4).take(1)]
    [[0, 1, 2, 3]]
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, seed: int | None = None, pairs: bool = False):
        self.arrays, self.seed = arrays, seed
        self.num_rows = len(next(iter(arrays.values())))
        self.rows_per_number = 2 if pairs else 1
        self.types = {name: array.dtype for name, array in arrays.items()}
        self.shapes = {name: array.shape[1 + pairs :] for name, array in arrays.items()}

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        count, index = self.num_rows, numbers % self.num_rows
        if self.seed is not None:
            epochs = (numbers // count).tolist()
            index = np.array(
                [seeded_permutation(f"order {self.seed} {epoch}", count)[row] for epoch, row in zip(epochs, index)]
            )
        arrays = {name: array[index] for name, array in self.arrays.items()}
        if self.seed is None and "example_weights" in arrays:
            arrays["example_weights"][numbers >= count] = 0
        return arrays
