"""Batches of examples that lie in memory: which ones step s receives is a pure function of (count, seed, s)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.pipeline.batches import LAST_STEP, EpochShuffle, rows_of_host, with_options


def training_examples(
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """Endless batches; every epoch has all examples in an order of its own, and may end within a batch.

    Args:
        arrays: name → [examples, …].
        batch_size: examples of the global batch.
        (others): as `tfgpt.pipeline.batches.training_batches`'.

    Returns:
        A dataset of dictionaries, [examples of a device, …].
    """
    examples = rows_of_host(batch_size, num_shards, shard_index, parts)
    count = len(next(iter(arrays.values())))
    order = functools.lru_cache(maxsize=2)(EpochShuffle(count, 1, seed).small_permutation)
    in_batch = shard_index * examples + np.arange(examples)

    def places(step: np.ndarray) -> np.ndarray:
        numbers = int(step) * batch_size + in_batch
        return np.array([order(int(number // count))[number % count] for number in numbers])

    return dealt_out(arrays, tf.data.Dataset.range(start_step, LAST_STEP), places, examples, parts)


def validation_examples(
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """All examples once, in order; what fills up the last batch has `example_weights` of 0.

    Args, elements: as `training_examples`'; `example_weights` [examples, …] must be among the arrays.
    """
    examples = rows_of_host(batch_size, num_shards, shard_index, parts)
    count = len(next(iter(arrays.values())))
    steps = validation_examples_steps(count, batch_size)
    missing = steps * batch_size - count
    padded = {name: np.concatenate([array, np.repeat(array[-1:], missing, 0)]) for name, array in arrays.items()}
    padded["example_weights"][count:] = 0.0

    def places(step: np.ndarray) -> np.ndarray:
        return int(step) * batch_size + shard_index * examples + np.arange(examples)

    dataset = dealt_out(padded, tf.data.Dataset.range(steps), places, examples, parts)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps * parts))


def validation_examples_steps(count: int, batch_size: int) -> int:
    """How many batches `validation_examples` has."""
    return -(-count // batch_size)


def in_order(
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    first: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """Batches as the examples lie, from the `first` batch on and round again; the examples fill whole batches.

    Args, elements: as `training_examples`'.
    """
    examples = rows_of_host(batch_size, num_shards, shard_index, parts)
    count = len(next(iter(arrays.values())))

    def places(step: np.ndarray) -> np.ndarray:
        return (int(step) * batch_size + shard_index * examples + np.arange(examples)) % count

    return dealt_out(arrays, tf.data.Dataset.range(first, LAST_STEP), places, examples, parts)


def dealt_out(
    arrays: Mapping[str, np.ndarray],
    steps: tf.data.Dataset,
    places: Callable[[np.ndarray], np.ndarray],
    examples: int,
    parts: int,
) -> tf.data.Dataset:
    """A host's examples of each step, in `parts` elements."""
    names = list(arrays)

    def read(step: np.ndarray) -> list[np.ndarray]:
        found = places(step)
        return [arrays[name][found] for name in names]

    def batch(step: tf.Tensor) -> dict[str, Any]:
        tensors = tf.numpy_function(read, [step], [arrays[name].dtype for name in names], stateful=False)
        return {
            name: tf.reshape(tensor, [parts, examples // parts, *arrays[name].shape[1:]])
            for name, tensor in zip(names, tensors)
        }

    return with_options(steps.map(batch).unbatch())
