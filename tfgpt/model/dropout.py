"""Stateless dropout: masks are a function of a given seed and the layer's number."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfgpt.model.decoder_layer import DecoderLayer

_current = threading.local()  # MirroredStrategy traces its replicas in threads.


@contextlib.contextmanager
def dropout_seed(seed: tf.Tensor | None) -> Iterator[None]:
    """Sets the seed of all dropout layers that are called inside the block, in this thread.

    Args:
        seed: [2] int32, or None. Fold the numbers of step, micro-batch and replica into it, so that masks differ.
    """
    outer = current_dropout_seed()
    _current.seed = seed
    try:
        yield
    finally:
        _current.seed = outer


def current_dropout_seed() -> tf.Tensor | None:
    """Returns the seed of the innermost `dropout_seed`, or None."""
    return getattr(_current, "seed", None)


@keras.saving.register_keras_serializable(package="tfgpt")
class Dropout(DecoderLayer):
    """Zeroes a fraction of the inputs in training and scales up the rest, so that the mean stays.

    Args:
        rate: the fraction, in [0, 1).
        number: differs between the layers of a model. Layers with equal numbers have equal masks.

    Example:

    >>> with dropout_seed(tf.constant([1, 2])):
    ...     kept = Dropout(0.5, number=0)(tf.ones([1000]), training=True)
    >>> sorted(set(kept.numpy().tolist()))
    [0.0, 2.0]
    """

    def __init__(self, rate: float, number: int, **options: Any):
        super().__init__(**options)
        self.rate, self.number = rate, number
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns a tensor of the inputs' shape and float type."""
        if not training or self.rate == 0.0:
            return inputs
        seed = current_dropout_seed()
        if seed is None:
            raise RuntimeError("training with dropout needs a seed: call the model inside `with dropout_seed(seed):`")
        folded = tf.random.experimental.stateless_fold_in(seed, self.number, alg="philox")
        # Integers, because graph mode and XLA turn equal bits into different fractions, and bfloat16 fractions have
        # steps of 1/128.
        bits = tf.random.stateless_uniform(
            tf.shape(inputs), folded, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
        )
        kept = bits >= tf.constant(round(self.rate * 2**32), tf.uint32)
        factor = tf.constant(1.0 / (1.0 - self.rate), inputs.dtype)
        return inputs * tf.where(kept, factor, tf.zeros((), inputs.dtype))
