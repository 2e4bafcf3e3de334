"""Dropout without random state: a mask is a pure function of a seed handed in and the layer's own number."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

_handed = threading.local()  # Replicas of a MirroredStrategy are traced in threads of their own.


@contextlib.contextmanager
def dropout_seed(seed: tf.Tensor | None) -> Iterator[None]:
    """Hands `seed` to every dropout layer called inside the block, in this thread.

    Args:
        seed: [2] int32, or None for none. Fold the step, micro-batch and replica numbers into it, so that masks differ.
    """
    outer = current_dropout_seed()
    _handed.seed = seed
    try:
        yield
    finally:
        _handed.seed = outer


def current_dropout_seed() -> tf.Tensor | None:
    """The seed handed in by the innermost `dropout_seed`, or None."""
    return getattr(_handed, "seed", None)


@keras.saving.register_keras_serializable(package="tfgpt")
class Dropout(keras.layers.Layer):
    """Zeroes a fraction of the input's elements in training and scales the rest up, so that the mean stays.

    Args:
        rate: the fraction, in [0, 1).
        number: the layer's own number: two layers of one model with equal numbers would drop alike.
    """

    def __init__(self, rate: float, number: int, **options: Any):
        super().__init__(autocast=False, **options)
        self.rate, self.number = rate, number
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """[...] any float type → the same.

        Raises:
            RuntimeError: training with a rate above 0 outside `dropout_seed`.
        """
        if not training or self.rate == 0.0:
            return inputs
        seed = current_dropout_seed()
        if seed is None:
            raise RuntimeError("training with dropout needs a seed: call the model inside `with dropout_seed(seed):`")
        folded = tf.random.experimental.stateless_fold_in(seed, self.number, alg="philox")
        # Whole numbers: their bits are the same in graph mode and under XLA, which make different fractions of them;
        # and a fraction in bfloat16 would come in steps of 1/128.
        bits = tf.random.stateless_uniform(
            tf.shape(inputs), folded, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
        )
        kept = bits >= tf.constant(round(self.rate * 2**32), tf.uint32)
        factor = tf.constant(1.0 / (1.0 - self.rate), inputs.dtype)
        return inputs * tf.where(kept, factor, tf.zeros((), inputs.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "number": self.number}
