"""Self-attention with full, grouped or single key-value heads, with and without a key-value cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder_layer import ConfiguredLayer
from tfgpt.model.dropout import Dropout
from tfgpt.model.layers import Normalization, normalize
from tfgpt.model.position_embeddings import rotate
from tfgpt.model.projection import Projection, leading_shape
from tfgpt.model.softmax_attention import attend, attend_causally, attend_with_cache, swap_heads


@keras.saving.register_keras_serializable(package="tfgpt")
class SelfAttention(ConfiguredLayer):
    """Multi-head, grouped-query or multi-query self-attention.

    With `config.query_key_norm`, each head of queries and keys is RMS-normalized before the rotation (Dehghani et al.
    2023).

    Args:
        config: a `DecoderConfig` or its dictionary.
        dropout_number: number of the `Dropout` layer on the attention weights.

    Example:

    >>> layer = SelfAttention({"hidden_dim": 12, "num_query_heads": 3, "position_embedding": "learned"})
    >>> layer(tf.ones([1, 5, 12]), None, tf.zeros([5, 5])).shape
    TensorShape([1, 5, 12])
    """

    def __init__(self, config: DecoderConfig | Mapping[str, Any], dropout_number: int = 0, **options: Any):
        super().__init__(config, **options)
        self.dropout_number = dropout_number
        self.query_norm: Any = None
        self.key_norm: Any = None

    def build(self, input_shape: tuple[Any, ...]) -> None:
        config = self.config

        def projection(units: int, name: str, width: int, bias: bool, factor: float = 1.0) -> Projection:
            layer = Projection(units, bias, config.initializer_range, factor, name=name, dtype=self.dtype_policy)
            layer.build((*input_shape[:-1], width))
            return layer

        width, bias = input_shape[-1], config.use_query_key_value_bias
        query_factor = 1.0 if config.query_key_norm else config.query_initializer_factor
        self.query = projection(config.query_width, "query", width, bias, query_factor)
        self.key = projection(config.key_value_width, "key", width, bias)
        self.value = projection(config.key_value_width, "value", width, bias)
        self.output_projection = projection(
            width, "output", config.query_width, config.use_bias, config.output_initializer_factor
        )
        if config.query_key_norm and config.normalization_scale:
            self.query_norm, self.key_norm = (
                Normalization(
                    epsilon=config.normalization_epsilon, initial_scale=scale, name=name, dtype=self.dtype_policy
                )
                for name, scale in (("query_norm", config.query_initializer_factor), ("key_norm", 1.0))
            )
            self.query_norm.build((None, config.head_dim))
            self.key_norm.build((None, config.head_dim))
        self.drop = Dropout(config.dropout, self.dropout_number, name="dropout", dtype=self.dtype_policy)

    def call(
        self, inputs: tf.Tensor, rotation: Sequence[tf.Tensor] | None, mask: Any, training: bool | None = None
    ) -> tf.Tensor:
        """Returns a tensor of the inputs' shape [batch, length, width].

        Args:
            rotation: the tables of `RotaryEmbedding`, or None.
            mask: float32, broadcast to [batch, 1, 1, length, length].
        """
        query, key, value = self.heads(inputs, rotation)
        if self.config.dropout and training:
            mixed = attend(query, key, value, mask, lambda weights: self.drop(weights, training=True))
        else:
            mixed = attend_causally(query, key, value, mask, self.config.sliding_window)
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
        """Attends to the cached and the new keys and values.

        Args:
            cache: keys and values, each [batch, heads, slots, head_dim]. The new ones are written from slot
                `cache_index` on.
            past: read-only keys [batch, heads, head_dim, slots] and values [batch, heads, slots, head_dim] that precede
                the cache.

        Returns:
            The output and the new cache.
        """
        query, key, value = self.heads(inputs, rotation)
        keys = write_slots(cache[0], swap_heads(key), cache_index)
        values = write_slots(cache[1], swap_heads(value), cache_index)
        parts = [(keys, values, False)]
        if past is not None:
            parts = [(*past, True), *parts]
        return self.output_projection(attend_with_cache(query, parts, mask)), (keys, values)

    def heads(self, inputs: tf.Tensor, rotation: Sequence[tf.Tensor] | None) -> tuple[tf.Tensor, ...]:
        """Returns query, key and value, each [batch, length, its heads, head_dim].

        The query carries the attention scale; with `rotation`, query and key carry its root each. Three products were
        faster than one with concatenated kernels (docs/measurements.md).
        """
        query = self.normalized(self.query(inputs), self.config.num_query_heads, self.query_norm)
        key = self.normalized(self.key(inputs), self.config.num_key_value_heads, self.key_norm)
        value = split_heads(self.value(inputs), self.config.num_key_value_heads)
        if rotation is None:
            return query * tf.cast(self.config.attention_scale, query.dtype), key, value
        return rotate(query, rotation), rotate(key, rotation), value

    def normalized(self, projected: tf.Tensor, count: int, norm: Normalization | None) -> tf.Tensor:
        """Splits heads and applies the query-key norm: [batch, length, count x head_dim] → [..., count, head_dim]."""
        heads = split_heads(projected, count)
        if norm is not None:
            return norm(heads)
        if self.config.query_key_norm:
            return normalize(heads, self.config.normalization_epsilon, centered=False)
        return heads


def split_heads(projected: tf.Tensor, count: int) -> tf.Tensor:
    """[batch, length, count x head_dim] → [batch, length, count, head_dim]."""
    return tf.reshape(projected, [*leading_shape(projected), count, projected.shape[-1] // count])


def write_slots(cache: tf.Tensor, new: tf.Tensor, cache_index: tf.Tensor) -> tf.Tensor:
    """Writes `new` [batch, heads, length, head_dim] to cache [batch, heads, slots, head_dim], from an index on.

    Only core TensorFlow operations, for TensorFlow Serving, XLA and LiteRT. In a loop, TensorFlow copies the cache at
    each scatter: loops keep their cache short and the preceding tokens in a read-only `past`.
    """
    length = new.shape[2] or tf.shape(new)[2]
    if new.shape[2] == 1:
        batch, heads = tf.shape(new)[0], new.shape[1]
        rows = tf.range(batch * heads)
        indices = tf.stack([rows // heads, rows % heads, tf.fill([batch * heads], cache_index)], 1)
        return tf.tensor_scatter_nd_update(cache, indices, tf.reshape(new, [-1, new.shape[3]]))
    if cache.shape[2] is not None and cache.shape[2] == new.shape[2]:
        return new
    return tf.concat([cache[:, :, :cache_index], new, cache[:, :, cache_index + length :]], 2)
