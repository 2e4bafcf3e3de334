"""The weights of an export: as they are, in bfloat16, or in int8 with a scale for each output channel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.model.decoder import Decoder


class ServedWeights:
    """A decoder's variables as they are saved, and the way they stand in for the decoder's own while it is traced.

    Args:
        decoder: float32, or bfloat16 for bfloat16 weights; int8 computes in the decoder's type.
        precision: "float32", "bfloat16" or "int8".

    Attributes:
        variables: what is saved.
    """

    def __init__(self, decoder: Decoder, precision: str):
        self._decoder = decoder
        self._quantized: list[tuple[Any, tf.Variable, tf.Variable, int]] = []
        if precision != "int8":
            self.variables = [variable.value for variable in decoder.variables]
            return
        self.variables = []
        for variable in decoder.variables:
            if len(variable.shape) != 2:
                self.variables.append(variable.value)
                continue
            axis = channel_axis(variable)
            integers, scales = quantized(np.asarray(variable.value, np.float32), axis)
            pair = tf.Variable(integers, trainable=False), tf.Variable(scales, trainable=False)
            self._quantized.append((variable, *pair, axis))
            self.variables += pair

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While a function is traced, the decoder reads these weights; integers become whole tables once a call."""
        if not self._quantized:
            yield
            return
        with keras.StatelessScope([(variable, self._dequantized(*rest)) for variable, *rest in self._quantized]):
            yield

    def assign_to_decoder(self) -> None:
        """Gives the decoder itself what the integers stand for, so that it computes as the export does."""
        for variable, *rest in self._quantized:
            variable.assign(self._dequantized(*rest))

    def _dequantized(self, integers: tf.Variable, scales: tf.Variable, axis: int) -> tf.Tensor:
        dtype = self._decoder.compute_dtype
        return tf.cast(integers, dtype) * tf.cast(tf.expand_dims(scales, 1 - axis), dtype)


def channel_axis(variable: Any) -> int:
    """The axis of a table's output channels: a kernel's columns, an embedding's (and a head's) rows."""
    path = variable.path
    return 0 if path.endswith("embeddings") or path.endswith("head/kernel") else 1


def quantized(table: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A table [rows, columns] float32 as int8 times a scale for each channel along `axis`, symmetric around 0.

    Returns:
        The integers, as the table, -127 to 127; the scales [channels] float32.
    """
    scales = np.abs(table).max(axis=1 - axis) / 127
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    integers = np.rint(table / np.expand_dims(scales, 1 - axis))
    return np.clip(integers, -127, 127).astype(np.int8), scales
