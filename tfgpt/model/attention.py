"""Self-attention: rotary positions, masks, grouped heads, with and without a cache of keys and values."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.model.dropout import Dropout
from tfgpt.model.layers import DecoderLayer, Normalization, Projection, project_together, root_mean_square_inverse

MASKED = -1e9
"""Added to a score that must not count: e to it is 0 in float32, and a row masked whole stays finite."""

LARGEST_CONSTANT_MASK = 2048
"""Longer masks are computed in the graph instead of being stored in it (4 bytes x length²)."""


def rotation_tables(positions: Any, head_dim: int, max_wavelength: float, factor: float = 1.0) -> tuple[Any, Any]:
    """The cosines and signed sines of RoPE (Su et al. 2021) in the half-split form of GPT-NeoX and Llama.

    Args:
        positions: [...] int32, an array (gives arrays) or a tensor (gives tensors).
        head_dim: width of a head.
        max_wavelength: theta.
        factor: multiplies both tables; the square root of the attention scale makes scaling the scores free.

    Returns:
        (cosines, sines), each [..., 1, head_dim] float32, with a place for the heads. The first half of the sines is negative.
    """
    inverse = (max_wavelength ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)
    if isinstance(positions, np.ndarray):
        angles = positions[..., None, None].astype(np.float64) * inverse  # (..., 1, head_dim / 2)
        cosines, sines = np.cos(angles) * factor, np.sin(angles) * factor
        tables = np.concatenate([cosines, cosines], -1), np.concatenate([-sines, sines], -1)
        return tables[0].astype(np.float32), tables[1].astype(np.float32)
    angles = tf.cast(positions, tf.float32)[..., None, None] * inverse
    cosines, sines = tf.cos(angles) * factor, tf.sin(angles) * factor
    return tf.concat([cosines, cosines], -1), tf.concat([-sines, sines], -1)


def rotate(heads: tf.Tensor, rotation: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
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


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: Any, drop: Any = None) -> tf.Tensor:
    """Softmax attention; the queries of one group stand side by side, so keys and values are never repeated.

    Args:
        query: [batch, length, query heads, head_dim], already scaled.
        key: [batch, slots, key-value heads, head_dim]; query head h reads key-value head h // group.
        value: as key.
        mask: float32, broadcast to [batch, key-value heads, group, length, slots].
        drop: called on the attention weights.

    Returns:
        [batch, length, query heads x head_dim].
    """
    batch, length = [size or tf.shape(query)[axis] for axis, size in enumerate(query.shape[:2])]
    slots = key.shape[1] or tf.shape(key)[1]
    heads, head_dim, groups = query.shape[2], query.shape[3], key.shape[2]
    group = heads // groups
    if group == 1:
        query = tf.transpose(query, [0, 2, 1, 3])  # (batch, heads, length, head_dim)
    else:
        query = tf.transpose(tf.reshape(query, [batch, length, groups, group, head_dim]), [0, 2, 3, 1, 4])
        query = tf.reshape(query, [batch, groups, group * length, head_dim])
    key, value = tf.transpose(key, [0, 2, 1, 3]), tf.transpose(value, [0, 2, 1, 3])  # (batch, groups, slots, head_dim)
    scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)
    scores = tf.reshape(scores, [batch, groups, group, length, slots]) + mask
    weights = tf.cast(tf.nn.softmax(scores), value.dtype)
    if drop is not None:
        weights = drop(weights)
    if group == 1:
        mixed = tf.matmul(tf.reshape(weights, [batch, heads, length, slots]), value)
        mixed = tf.transpose(mixed, [0, 2, 1, 3])  # (batch, length, heads, head_dim)
    else:
        mixed = tf.matmul(tf.reshape(weights, [batch, groups, group * length, slots]), value)
        mixed = tf.transpose(tf.reshape(mixed, [batch, groups, group, length, head_dim]), [0, 3, 1, 2, 4])
    return tf.reshape(mixed, [batch, length, heads * head_dim])


@keras.saving.register_keras_serializable(package="tfgpt")
class SelfAttention(DecoderLayer):
    """Multi-head, grouped-query or multi-query self-attention.

    Args:
        num_query_heads: heads of queries.
        num_key_value_heads: heads of keys and of values; divides the former.
        head_dim: width of a head.
        scale: factor on the query-key products where `rotation` (below) does not bring it.
        query_key_norm: RMS-normalize each head of queries and keys before rotation (Dehghani et al. 2023; Qwen3's order).
        normalization_epsilon, normalization_scale: that norm's.
        use_query_key_value_bias, use_bias: biases of the first three projections, and of the last.
        initializer_range, output_factor: as `MLP`'s.
        dropout: fraction of attention weights dropped.
        dropout_number: as `Dropout`'s.
    """

    def __init__(
        self,
        num_query_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        scale: float = 1.0,
        query_key_norm: bool = False,
        normalization_epsilon: float = 1e-6,
        normalization_scale: bool = True,
        use_query_key_value_bias: bool = False,
        use_bias: bool = False,
        initializer_range: float | None = 0.02,
        output_factor: float = 1.0,
        dropout: float = 0.0,
        dropout_number: int = 0,
        **options: Any,
    ):
        super().__init__(**options)
        self.num_query_heads, self.num_key_value_heads, self.head_dim = num_query_heads, num_key_value_heads, head_dim
        self.scale, self.query_key_norm = scale, query_key_norm
        self.normalization_epsilon, self.normalization_scale = normalization_epsilon, normalization_scale
        self.use_query_key_value_bias, self.use_bias = use_query_key_value_bias, use_bias
        self.initializer_range, self.output_factor = initializer_range, output_factor
        self.dropout, self.dropout_number = dropout, dropout_number
        self.query_norm = self.key_norm = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes `query`, `key`, `value`, `output`, perhaps `query_norm` and `key_norm`."""
        inside = self.num_query_heads * self.head_dim
        first = {"use_bias": self.use_query_key_value_bias, "initializer_range": self.initializer_range}
        key_value_width = self.num_key_value_heads * self.head_dim
        self.query = Projection(inside, name="query", dtype=self.dtype_policy, **first)
        self.key = Projection(key_value_width, name="key", dtype=self.dtype_policy, **first)
        self.value = Projection(key_value_width, name="value", dtype=self.dtype_policy, **first)
        self.output_projection = Projection(
            input_shape[-1],
            use_bias=self.use_bias,
            initializer_range=self.initializer_range,
            initializer_factor=self.output_factor,
            name="output",
            dtype=self.dtype_policy,
        )
        for projection in (self.query, self.key, self.value):
            projection.build(input_shape)
        self.output_projection.build((*input_shape[:-1], inside))
        if self.query_key_norm and self.normalization_scale:
            norm = {"epsilon": self.normalization_epsilon, "dtype": self.dtype_policy}
            self.query_norm = Normalization(name="query_norm", **norm)
            self.key_norm = Normalization(name="key_norm", **norm)
            self.query_norm.build((None, self.head_dim))
            self.key_norm.build((None, self.head_dim))
        self.drop = Dropout(self.dropout, self.dropout_number, name="dropout", dtype=self.dtype_policy)

    def heads(self, inputs: tf.Tensor, rotation: tuple[tf.Tensor, tf.Tensor] | None) -> tuple[tf.Tensor, ...]:
        """inputs [batch, length, width] → query, key and value, each [batch, length, its heads, head_dim].

        The query (with `rotation`, the query and the key together) carries the attention scale.
        """
        batch, length = [size or tf.shape(inputs)[axis] for axis, size in enumerate(inputs.shape[:2])]
        sizes = [self.num_query_heads + self.num_key_value_heads, self.num_key_value_heads]
        projections = [self.query, self.key, self.value]
        if inputs.shape[1] == 1:
            # One token: laying the kernels side by side would cost more than the products.
            together = tf.concat([projection(inputs) for projection in projections], -1)
        else:
            together = project_together(inputs, projections)
        together = tf.reshape(together, [batch, length, sum(sizes), self.head_dim])
        query_key, value = tf.split(together, sizes, 2)
        if self.query_key_norm:
            query_key *= root_mean_square_inverse(query_key, self.normalization_epsilon)
        if self.query_norm is not None and self.key_norm is not None:
            scales = [self.compute(self.query_norm.scale)] * self.num_query_heads
            scales += [self.compute(self.key_norm.scale)] * self.num_key_value_heads
            query_key *= tf.stack(scales)  # (query and key heads, head_dim)
        if rotation is not None:
            query_key = rotate(query_key, rotation)
        query, key = tf.split(query_key, [self.num_query_heads, self.num_key_value_heads], 2)
        return query if rotation is not None else query * tf.cast(self.scale, query.dtype), key, value

    def call(
        self, inputs: tf.Tensor, rotation: tuple[tf.Tensor, tf.Tensor] | None, mask: Any, training: bool | None = None
    ) -> tf.Tensor:
        """inputs [batch, length, width] → the same; `mask` as `attend`'s."""
        query, key, value = self.heads(inputs, rotation)
        drop = (lambda weights: self.drop(weights, training=training)) if self.dropout else None
        return self.output_projection(attend(query, key, value, mask, drop))

    def call_with_cache(
        self,
        inputs: tf.Tensor,
        rotation: tuple[tf.Tensor, tf.Tensor] | None,
        mask: tf.Tensor,
        cache: tuple[tf.Tensor, tf.Tensor],
        cache_index: tf.Tensor,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """As `call`, over the cached keys and values ([batch, slots, heads, head_dim] each) and the new ones.

        The new ones are written from slot `cache_index` on; returns the output and the new cache.
        """
        query, key, value = self.heads(inputs, rotation)
        cache = write_slots(cache[0], key, cache_index), write_slots(cache[1], value, cache_index)
        return self.output_projection(attend(query, *cache, mask)), cache

    def get_config(self) -> dict[str, Any]:
        names = (
            "num_query_heads num_key_value_heads head_dim scale query_key_norm normalization_epsilon "
            "normalization_scale use_query_key_value_bias use_bias initializer_range output_factor dropout dropout_number"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


def write_slots(cache: tf.Tensor, new: tf.Tensor, cache_index: tf.Tensor) -> tf.Tensor:
    """cache [batch, slots, ...] with `new` [batch, length, ...] in the slots from `cache_index` on.

    Core TensorFlow operations only, so that TensorFlow Serving and XLA both run it.
    """
    length = new.shape[1] or tf.shape(new)[1]
    if new.shape[1] == 1:
        here = tf.equal(tf.range(cache.shape[1] or tf.shape(cache)[1]), cache_index)
        return tf.where(here[None, :, None, None], new, cache)
    if cache.shape[1] is not None and cache.shape[1] == new.shape[1]:
        return new
    return tf.concat([cache[:, :cache_index], new, cache[:, cache_index + length :]], 1)
