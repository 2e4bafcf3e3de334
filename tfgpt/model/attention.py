"""Self-attention with full, grouped or single key-value heads, with and without a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpt.model.dropout import Dropout
from tfgpt.model.layers import DecoderLayer, Normalization, Projection, leading_shape, standardized
from tfgpt.model.position_embeddings import rotate
from tfgpt.model.softmax_attention import attend, attend_causally, attend_in_parts, swap_heads


@keras.saving.register_keras_serializable(package="tfgpt")
class SelfAttention(DecoderLayer):
    """Multi-head, grouped-query or multi-query self-attention.

    Args:
        num_query_heads: heads of queries.
        num_key_value_heads: heads of keys and of values; divides the former.
        head_dim: width of a head.
        scale: factor on the query-key products where `rotation` (below) does not bring it.
        query_key_norm: RMS-normalize each head of queries and keys, before the rotation (Dehghani et al. 2023).
        normalization_epsilon, normalization_scale: that norm's.
        use_query_key_value_bias, use_bias: biases of the first three projections, and of the last.
        initializer_range, output_factor: as `MLP`'s.
        query_factor: multiplies the initial queries: the scale of their norm, or their kernel where they have none.
        dropout: fraction of attention weights dropped.
        dropout_number: as `Dropout`'s.
        sliding_window: the window that the mask given to `call` has; keys outside of it are not computed.
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
        query_factor: float = 1.0,
        dropout: float = 0.0,
        dropout_number: int = 0,
        sliding_window: int | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self.num_query_heads, self.num_key_value_heads, self.head_dim = num_query_heads, num_key_value_heads, head_dim
        self.scale, self.query_key_norm = scale, query_key_norm
        self.normalization_epsilon, self.normalization_scale = normalization_epsilon, normalization_scale
        self.use_query_key_value_bias, self.use_bias = use_query_key_value_bias, use_bias
        self.initializer_range, self.output_factor = initializer_range, output_factor
        self.query_factor = query_factor
        self.dropout, self.dropout_number, self.sliding_window = dropout, dropout_number, sliding_window
        self.query_norm: Any = None
        self.key_norm: Any = None

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Makes `query`, `key`, `value`, `output`, perhaps `query_norm` and `key_norm`."""
        query_width, key_value_width = (
            count * self.head_dim for count in (self.num_query_heads, self.num_key_value_heads)
        )
        self.query = self.projection(query_width, "query", 1.0 if self.query_key_norm else self.query_factor)
        self.key = self.projection(key_value_width, "key")
        self.value = self.projection(key_value_width, "value")
        self.output_projection = Projection(
            input_shape[-1],
            self.use_bias,
            self.initializer_range,
            self.output_factor,
            name="output",
            dtype=self.dtype_policy,
        )
        for projection in (self.query, self.key, self.value):
            projection.build(input_shape)
        self.output_projection.build((*input_shape[:-1], query_width))
        if self.query_key_norm and self.normalization_scale:
            self.query_norm, self.key_norm = (
                Normalization(
                    epsilon=self.normalization_epsilon, initial_scale=factor, name=name, dtype=self.dtype_policy
                )
                for name, factor in (("query_norm", self.query_factor), ("key_norm", 1.0))
            )
            self.query_norm.build((None, self.head_dim))
            self.key_norm.build((None, self.head_dim))
        self.drop = Dropout(self.dropout, self.dropout_number, name="dropout", dtype=self.dtype_policy)

    def projection(self, units: int, name: str, factor: float = 1.0) -> Projection:
        """One of the first three projections, not built."""
        bias = self.use_query_key_value_bias
        return Projection(units, bias, self.initializer_range, factor, name=name, dtype=self.dtype_policy)

    def heads(self, inputs: tf.Tensor, rotation: Sequence[tf.Tensor] | None) -> tuple[tf.Tensor, ...]:
        """inputs [batch, length, width] → query, key and value, each [batch, length, its heads, head_dim].

        The query (with `rotation`, the query and the key together) carries the attention scale.

        Three products, not one with the kernels laid side by side: measured on 2 cores, a training step of 4 x 128 and
        of 4 x 192 took 2 to 7% longer with one in graph mode, which copies the pieces apart again, and up to 2% less
        with XLA.
        """
        query = self.normalized(self.query(inputs), self.num_query_heads, self.query_norm)
        key = self.normalized(self.key(inputs), self.num_key_value_heads, self.key_norm)
        value = split_heads(self.value(inputs), self.num_key_value_heads)
        if rotation is None:
            return query * tf.cast(self.scale, query.dtype), key, value
        return rotate(query, rotation), rotate(key, rotation), value

    def normalized(self, projected: tf.Tensor, count: int, norm: Normalization | None) -> tf.Tensor:
        """[batch, length, count x head_dim] → [batch, length, count, head_dim], with query-key norm if there is one."""
        heads = split_heads(projected, count)
        if norm is not None:
            return norm(heads)
        return standardized(heads, self.normalization_epsilon, centered=False) if self.query_key_norm else heads

    def call(
        self, inputs: tf.Tensor, rotation: Sequence[tf.Tensor] | None, mask: Any, training: bool | None = None
    ) -> tf.Tensor:
        """inputs [batch, length, width] → the same; `mask` as `attend`'s."""
        query, key, value = self.heads(inputs, rotation)
        if self.dropout and training:
            mixed = attend(query, key, value, mask, lambda weights: self.drop(weights, training=True))
        else:
            mixed = attend_causally(query, key, value, mask, self.sliding_window)
        return self.output_projection(mixed)

    def call_with_cache(
        self,
        inputs: tf.Tensor,
        rotation: Sequence[tf.Tensor] | None,
        mask: tf.Tensor,
        cache: tuple[tf.Tensor, tf.Tensor],
        cache_index: tf.Tensor,
        past: tuple[tf.Tensor, tf.Tensor] | None = None,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """As `call`, over the cached keys and values ([batch, heads, slots, head_dim] each) and the new ones.

        The new ones are written from slot `cache_index` on; returns the output and the new cache. `past` holds what
        stands before the cache and is only read: keys [batch, heads, head_dim, slots], values as the cache's.
        """
        query, key, value = self.heads(inputs, rotation)
        keys = write_slots(cache[0], swap_heads(key), cache_index)
        values = write_slots(cache[1], swap_heads(value), cache_index)
        parts = [(keys, values, False)]
        if past is not None:
            parts = [(*past, True), *parts]
        return self.output_projection(attend_in_parts(query, parts, mask)), (keys, values)

    def get_config(self) -> dict[str, Any]:
        names = (
            "num_query_heads num_key_value_heads head_dim scale query_key_norm normalization_epsilon "
            "normalization_scale use_query_key_value_bias use_bias initializer_range output_factor query_factor "
            "dropout dropout_number sliding_window"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


def split_heads(projected: tf.Tensor, count: int) -> tf.Tensor:
    """[batch, length, count x head_dim] → [batch, length, count, head_dim]."""
    return tf.reshape(projected, [*leading_shape(projected), count, projected.shape[-1] // count])


def write_slots(cache: tf.Tensor, new: tf.Tensor, cache_index: tf.Tensor) -> tf.Tensor:
    """cache [batch, heads, slots, head_dim] with `new` [batch, heads, length, head_dim] in slots from `cache_index` on.

    Core TensorFlow operations only, so that TensorFlow Serving, XLA and LiteRT run it. In a loop, where attention
    reads the result, TensorFlow copies the cache at each scatter (2.1 ms for 13 MB, one core): loops keep what they
    write short, behind a `past` that they only read.
    """
    length = new.shape[2] or tf.shape(new)[2]
    if new.shape[2] == 1:
        batch, heads = tf.shape(new)[0], new.shape[1]
        rows = tf.range(batch * heads)
        places = tf.stack([rows // heads, rows % heads, tf.fill([batch * heads], cache_index)], 1)
        return tf.tensor_scatter_nd_update(cache, places, tf.reshape(new, [-1, new.shape[3]]))
    if cache.shape[2] is not None and cache.shape[2] == new.shape[2]:
        return new
    return tf.concat([cache[:, :, :cache_index], new, cache[:, :, cache_index + length :]], 2)
