"""Rotary and learned position embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.model.attention_mask import checked_length
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder_layer import ConfiguredLayer
from tfgpt.model.layers import Embedding


@keras.saving.register_keras_serializable(package="tfgpt")
class RotaryEmbedding(ConfiguredLayer):
    """Rotation tables of RoPE for all blocks, computed once per step. They include the root of the attention scale.

    Args:
        config: a `DecoderConfig` or its dictionary.
        packed: the inputs are positions instead of token ids, whose positions are 0, 1, 2, ….

    Example:

    >>> cosines, sines = RotaryEmbedding({"head_dim": 4})(tf.zeros([1, 6], tf.int32))
    >>> cosines.shape
    TensorShape([1, 6, 1, 4])
    """

    def __init__(self, config: DecoderConfig | Mapping[str, Any], packed: bool = False, **options: Any):
        super().__init__(config, **options)
        self.packed = packed
        self.built = True

    def call(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns two tables [batch or 1, length, 1, head_dim] in the compute dtype for [batch, length] int32."""
        if self.packed:
            return self.at(inputs)
        length = inputs.shape[1]
        return self.at(tf.range(tf.shape(inputs)[1])[None] if length is None else np.arange(length)[None])

    def at(self, positions: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the tables at `positions` [batch or 1, length]."""
        cosines, sines = rotation_tables(positions, self.config.inverse_frequencies(), self.config.attention_scale**0.5)
        return tf.cast(cosines, self.compute_dtype), tf.cast(sines, self.compute_dtype)


def rotation_tables(positions: Any, inverse: np.ndarray, factor: float = 1.0) -> tuple[Any, Any]:
    """Returns the cosines and signed sines of RoPE (Su et al. 2021) in the half-split form of GPT-NeoX and Llama.

    Args:
        positions: [...] int32, an array (gives arrays) or a tensor (gives tensors).
        inverse: the result of `DecoderConfig.inverse_frequencies`.
        factor: multiplies both tables; with the root of the attention scale, scores need no scaling.

    Returns:
        (cosines, sines), each [..., 1, head_dim] float32, with an axis for the heads. The first half of the sines is
        negated.
    """
    if isinstance(positions, np.ndarray):
        angles = positions[..., None, None].astype(np.float64) * inverse  # (..., 1, head_dim / 2)
        cosines, sines = np.cos(angles) * factor, np.sin(angles) * factor
        tables = np.concatenate([cosines, cosines], -1), np.concatenate([-sines, sines], -1)
        return tables[0].astype(np.float32), tables[1].astype(np.float32)
    angles = tf.cast(positions, tf.float32)[..., None, None] * inverse
    cosines, sines = tf.cos(angles) * factor, tf.sin(angles) * factor
    return tf.concat([cosines, cosines], -1), tf.concat([-sines, sines], -1)


def rotate(heads: tf.Tensor, rotation: Sequence[tf.Tensor]) -> tf.Tensor:
    """Rotates heads [batch, length, heads, head_dim] by the tables of `rotation_tables`."""
    cosines, sines = rotation
    first, second = tf.split(heads, 2, -1)
    return heads * cosines + tf.concat([second, first], -1) * sines


@keras.saving.register_keras_serializable(package="tfgpt")
class PositionEmbedding(Embedding):
    """Learned position vectors.

    Args:
        packed: the inputs are positions instead of token ids. The other arguments are those of `Embedding`.

    Example:

    >>> PositionEmbedding(8, 4)(tf.zeros([1, 3], tf.int32)).shape
    TensorShape([1, 3, 4])
    """

    def __init__(self, rows: int, width: int, initializer_range: float = 0.02, packed: bool = False, **options: Any):
        super().__init__(rows, width, initializer_range, **options)
        self.packed = packed

    def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        """Returns [batch or 1, length, width] in the compute dtype for [batch, length] int32."""
        if reverse:
            raise ValueError("position embeddings are not an output head")
        if self.packed:
            return self.at(inputs)
        # Also checked here, because this layer may run before the mask's check.
        length = checked_length(inputs, self.embeddings.shape[0])
        return tf.cast(tf.convert_to_tensor(self.embeddings.value)[None, :length], self.compute_dtype)

    def at(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the vectors at `positions` [batch, length]."""
        return super().call(positions)
