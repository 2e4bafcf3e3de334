"""Additive attention masks: causal, sliding-window, packed and cached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder_layer import ConfiguredLayer

MASKED = -1e9
"""Added to the scores of hidden keys: exp(MASKED) is 0 in float32, and a fully masked row stays finite."""

LARGEST_CONSTANT_MASK = 2048
"""Longer masks are computed in the graph instead of being stored in it (4 bytes x length²)."""


@keras.saving.register_keras_serializable(package="tfgpt")
class AttentionMask(ConfiguredLayer):
    """The additive mask of all blocks, computed once per step.

    Args:
        config: a `DecoderConfig` or its dictionary. Inputs longer than `max_sequence_length` are refused.
        packed: the inputs are segment ids, which separate documents, instead of token ids.

    Example:

    >>> mask = AttentionMask({"sliding_window": 1})(tf.zeros([1, 2], tf.int32))
    >>> mask.numpy().squeeze().tolist()
    [[0.0, -1000000000.0], [-1000000000.0, 0.0]]
    """

    def __init__(self, config: DecoderConfig | Mapping[str, Any], packed: bool = False, **options: Any):
        super().__init__(config, **options)
        self.packed = packed
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns a float32 tensor that broadcasts to [batch, 1, 1, length, length] for inputs [batch, length]."""
        length = checked_length(inputs, self.config.max_sequence_length)
        if self.packed:
            return packed_mask(inputs, self.config.sliding_window)
        return tf.convert_to_tensor(causal_mask(length, self.config.sliding_window))


def causal_mask(length: int | tf.Tensor, sliding_window: int | None) -> Any:
    """Returns [1, 1, 1, length, length] float32: 0 where a query (row) sees a key (column), else `MASKED`.

    A query sees itself and earlier keys, with a window only the newest `sliding_window` of them.
    """
    if isinstance(length, int) and length <= LARGEST_CONSTANT_MASK:
        seen = in_window(np.arange(length)[:, None] - np.arange(length), sliding_window)
        return np.where(seen, np.float32(0), np.float32(MASKED))[None, None, None]
    seen = in_window(tf.range(length)[:, None] - tf.range(length), sliding_window)
    return tf.where(seen, 0.0, MASKED)[None, None, None]


def packed_mask(segment_ids: tf.Tensor, sliding_window: int | None) -> tf.Tensor:
    """Returns `causal_mask` within equal segment ids: [batch, length] → [batch, 1, 1, length, length] float32."""
    same = tf.equal(segment_ids[:, :, None], segment_ids[:, None, :])[:, None, None]
    length = segment_ids.shape[1] or tf.shape(segment_ids)[1]
    return tf.where(same, causal_mask(length, sliding_window), MASKED)


def cache_mask(valid: tf.Tensor, cache_index: tf.Tensor, length: Any, sliding_window: int | None) -> tf.Tensor:
    """Returns the mask of `length` queries, written from slot `cache_index` on, over all slots.

    Args:
        valid: [batch, slots] bool, false for padding.
        cache_index: scalar int32.

    Returns:
        [batch, 1, 1, length, slots] float32, 0 or `MASKED`.
    """
    slots = valid.shape[1] or tf.shape(valid)[1]
    seen = in_window((cache_index + tf.range(length))[:, None] - tf.range(slots), sliding_window)
    return tf.where(valid[:, None, :] & seen, 0.0, MASKED)[:, None, None]


def in_window(distance: Any, sliding_window: int | None) -> Any:
    seen = distance >= 0
    return seen if sliding_window is None else seen & (distance < sliding_window)


def checked_length(inputs: Any, max_sequence_length: int) -> Any:
    """Returns the length of [batch, length]: an int if it is known, else a tensor with an assertion."""
    length = inputs.shape[1]
    if length is None:
        length = tf.shape(inputs)[1]
        problem = f"max_sequence_length={max_sequence_length} is shorter than the input"
        with tf.control_dependencies([tf.debugging.assert_less_equal(length, max_sequence_length, message=problem)]):
            return tf.identity(length)
    if length > max_sequence_length:
        raise UserError(f"max_sequence_length: {max_sequence_length} is shorter than the input of {length} tokens")
    return length
