"""Weights of an export: float32, bfloat16, or int8 with one scale per output channel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.model.decoder import Decoder


class ServedWeights:
    """The variables of an export, which replace those of the decoder while it is traced.

    Args:
        decoder: in float32, or in bfloat16 for bfloat16 weights; int8 computes in the decoder's type.
        precision: "float32", "bfloat16" or "int8".
    """

    def __init__(self, decoder: Decoder, precision: str):
        self._decoder = decoder
        self._quantized: list[tuple[Any, tf.Variable, tf.Variable, int]] = []
        self.variables = []
        for variable in decoder.variables:
            if precision != "int8" or len(variable.shape) != 2:
                self.variables.append(variable.value)
                continue
            # The output channels are the columns of a kernel, and the rows of an embedding or a head.
            axis = 0 if variable.path.endswith(("embeddings", "head/kernel")) else 1
            integers, scales = quantize(np.asarray(variable.value, np.float32), axis)
            pair = tf.Variable(integers, trainable=False), tf.Variable(scales, trainable=False)
            self._quantized.append((variable, *pair, axis))
            self.variables += pair

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Makes the decoder read these weights; each call of a traced function dequantizes them once."""
        if not self._quantized:
            yield
            return
        with keras.StatelessScope([(variable, self._dequantize(*rest)) for variable, *rest in self._quantized]):
            yield

    def assign_to_decoder(self) -> None:
        """Assigns the dequantized weights to the decoder, so that it computes as the export does."""
        for variable, *rest in self._quantized:
            variable.assign(self._dequantize(*rest))

    def _dequantize(self, integers: tf.Variable, scales: tf.Variable, axis: int) -> tf.Tensor:
        dtype = self._decoder.compute_dtype
        return tf.cast(integers, dtype) * tf.cast(tf.expand_dims(scales, 1 - axis), dtype)


def quantize(table: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes a table [rows, columns] float32 to int8, symmetrically, with one scale per channel along `axis`.

    Returns the integers from -127 to 127, int8 like the table, and the scales [channels] float32.
    """
    scales = np.abs(table).max(axis=1 - axis) / 127
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    integers = np.rint(table / np.expand_dims(scales, 1 - axis))
    return np.clip(integers, -127, 127).astype(np.int8), scales
