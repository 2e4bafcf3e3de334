"""Where a token stands and what it sees: rotary and learned positions, causal, packed and cache masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.model.layers import DecoderLayer, Embedding
from tfgpt.model.rope import inverse_frequencies

MASKED = -1e9
"""Added to a score that must not count: e to it is 0 in float32, and a row masked whole stays finite."""

LARGEST_CONSTANT_MASK = 2048
"""Longer masks are computed in the graph instead of being stored in it (4 bytes x length²)."""


def rotation_tables(positions: Any, inverse: np.ndarray, factor: float = 1.0) -> tuple[Any, Any]:
    """The cosines and signed sines of RoPE (Su et al. 2021) in the half-split form of GPT-NeoX and Llama.

    Args:
        positions: [...] int32, an array (gives arrays) or a tensor (gives tensors).
        inverse: as `inverse_frequencies` gives.
        factor: multiplies both tables; the square root of the attention scale makes scaling the scores free.

    Returns:
        (cosines, sines), each [..., 1, head_dim] float32, with a place for the heads. The sines' first half is negated.
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
    """heads [batch, length, heads, head_dim] turned by the tables of `rotation_tables`."""
    cosines, sines = rotation
    first, second = tf.split(heads, 2, -1)
    return heads * cosines + tf.concat([second, first], -1) * sines


def causal_mask(length: int | tf.Tensor, sliding_window: int | None) -> Any:
    """[1, 1, 1, length, length] float32: 0 where a query (row) sees a key (column), `MASKED` elsewhere.

    A key is seen when it is not after the query and, with a window, fewer than `sliding_window` before it.
    """
    if isinstance(length, int) and length <= LARGEST_CONSTANT_MASK:
        distance = np.arange(length)[:, None] - np.arange(length)
        seen = (distance >= 0) & (distance < (sliding_window or length))
        return np.where(seen, np.float32(0), np.float32(MASKED))[None, None, None]
    distance = tf.range(length)[:, None] - tf.range(length)
    seen = distance >= 0
    if sliding_window is not None:
        seen &= distance < sliding_window
    return tf.where(seen, 0.0, MASKED)[None, None, None]


def packed_mask(segment_ids: tf.Tensor, sliding_window: int | None) -> tf.Tensor:
    """[batch, 1, 1, length, length] float32: as `causal_mask`, and only within equal segment ids ([batch, length])."""
    same = tf.equal(segment_ids[:, :, None], segment_ids[:, None, :])[:, None, None]
    length = segment_ids.shape[1] or tf.shape(segment_ids)[1]
    return tf.where(same, causal_mask(length, sliding_window), MASKED)


def cache_mask(valid: tf.Tensor, cache_index: tf.Tensor, length: Any, sliding_window: int | None) -> tf.Tensor:
    """What `length` queries written from slot `cache_index` see of the slots.

    Args:
        valid: [batch, slots] bool, false for padding.
        cache_index: scalar int32, the first query's slot.

    Returns:
        [batch, 1, 1, length, slots] float32, 0 or `MASKED`.
    """
    slots = valid.shape[1] or tf.shape(valid)[1]
    distance = (cache_index + tf.range(length))[:, None] - tf.range(slots)
    seen = distance >= 0
    if sliding_window is not None:
        seen &= distance < sliding_window
    return tf.where(valid[:, None, :] & seen, 0.0, MASKED)[:, None, None]


@keras.saving.register_keras_serializable(package="tfgpt")
class AttentionMask(DecoderLayer):
    """The additive mask that all blocks share, made once a step.

    Args:
        sliding_window: as the config's.
        packed: called on segment ids, which separate documents, instead of token ids.
        max_sequence_length: longer inputs are refused.
    """

    def __init__(self, sliding_window: int | None, packed: bool, max_sequence_length: int, **options: Any):
        super().__init__(**options)
        self.sliding_window, self.packed, self.max_sequence_length = sliding_window, packed, max_sequence_length
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[batch, length] int32 → float32, broadcast to [batch, 1, 1, length, length]."""
        length = checked_length(inputs, self.max_sequence_length)
        if self.packed:
            return packed_mask(inputs, self.sliding_window)
        return tf.convert_to_tensor(causal_mask(length, self.sliding_window))

    def get_config(self) -> dict[str, Any]:
        own = {"sliding_window": self.sliding_window, "packed": self.packed}
        return {**super().get_config(), **own, "max_sequence_length": self.max_sequence_length}


def checked_length(inputs: Any, max_sequence_length: int) -> Any:
    """The length of [batch, length]: an int where it is known, else a tensor that is checked when it runs.

    Raises:
        UserError: a known length above `max_sequence_length`.
    """
    length = inputs.shape[1]
    if length is None:
        length = tf.shape(inputs)[1]
        problem = f"max_sequence_length={max_sequence_length} is shorter than the input"
        with tf.control_dependencies([tf.debugging.assert_less_equal(length, max_sequence_length, message=problem)]):
            return tf.identity(length)
    if length > max_sequence_length:
        raise UserError(f"max_sequence_length: {max_sequence_length} is shorter than the input of {length} tokens")
    return length


@keras.saving.register_keras_serializable(package="tfgpt")
class RotaryEmbedding(DecoderLayer):
    """RoPE's tables, made once a step for all blocks; the square root of the attention scale is in them.

    Args:
        head_dim, max_wavelength, scale: of the attention.
        packed: called on positions instead of token ids, whose positions are 0, 1, 2, ….
        scaling: the other arguments of `inverse_frequencies`.
    """

    def __init__(
        self,
        head_dim: int,
        max_wavelength: float,
        scale: float,
        packed: bool,
        scaling: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self.head_dim, self.max_wavelength, self.scale, self.packed = head_dim, max_wavelength, scale, packed
        self.scaling = dict(scaling or {})
        self.inverse = inverse_frequencies(head_dim, max_wavelength, **self.scaling)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """[batch, length] int32 → two tables, [batch or 1, length, 1, head_dim] in the compute dtype."""
        if self.packed:
            return self.at(inputs)
        length = inputs.shape[1]
        return self.at(tf.range(tf.shape(inputs)[1])[None] if length is None else np.arange(length)[None])

    def at(self, positions: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """The tables at `positions` [batch or 1, length]."""
        cosines, sines = rotation_tables(positions, self.inverse, self.scale**0.5)
        return tf.cast(cosines, self.compute_dtype), tf.cast(sines, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"head_dim": self.head_dim, "max_wavelength": self.max_wavelength, "scale": self.scale}
        return {**super().get_config(), **own, "packed": self.packed, "scaling": self.scaling}


@keras.saving.register_keras_serializable(package="tfgpt")
class PositionEmbedding(Embedding):
    """Learned position vectors; `packed` says that it is called on positions instead of token ids."""

    def __init__(self, rows: int, width: int, initializer_range: float = 0.02, packed: bool = False, **options: Any):
        super().__init__(rows, width, initializer_range, **options)
        self.packed = packed

    def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        """[batch, length] int32 → [batch or 1, length, width] in the compute dtype; there is no reverse."""
        if reverse:
            raise ValueError("position embeddings are no output head")
        if self.packed:
            return self.at(inputs)
        # Checked here too: adding the tokens' vectors, of another shape then, may come before the mask's check.
        length = checked_length(inputs, self.embeddings.shape[0])
        return tf.cast(tf.convert_to_tensor(self.embeddings.value)[None, :length], self.compute_dtype)

    def at(self, positions: tf.Tensor) -> tf.Tensor:
        """The vectors at `positions` [batch, length]."""
        return super().call(positions)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "packed": self.packed}
