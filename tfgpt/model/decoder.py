"""The decoder-only transformer as one functional Keras model, and its forward pass with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier as optimization_barrier

from tfgpt.model.attention import SelfAttention
from tfgpt.model.attention_mask import AttentionMask, cache_mask, checked_length
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder_layer import ConfiguredLayer
from tfgpt.model.dropout import Dropout, current_dropout_seed, dropout_seed
from tfgpt.model.layers import MLP, Embedding, Normalization, OutputHead, SoftCap, soft_cap
from tfgpt.model.position_embeddings import PositionEmbedding, RotaryEmbedding

Cache = list[tuple[tf.Tensor, tf.Tensor]]

DROPOUTS_PER_BLOCK = 3


@keras.saving.register_keras_serializable(package="tfgpt")
class Decoder(keras.Model):
    """A decoder-only transformer: {"token_ids": [batch, length] int32} → logits [batch, length, vocabulary] float32.

    Args:
        config: a `DecoderConfig` or its dictionary.
        packed: rows hold several documents. The inputs are also "positions" (restarting at 0 with each document) and
            "segment_ids" (attention stays within equal ones), both [batch, length] int32.
        dtype: a Keras dtype policy or its name; None: the global one.
        name: the first part of every variable's path.

    Attributes:
        backbone: the functional model of the same inputs to the final normalized hidden states
            [batch, length, hidden_dim], in the compute dtype.

    Example:

    >>> decoder = Decoder({"vocabulary_size": 10, "hidden_dim": 12, "num_layers": 1})
    >>> decoder({"token_ids": tf.constant([[1, 2, 3]])}).shape
    TensorShape([1, 3, 10])
    """

    def __init__(
        self,
        config: DecoderConfig | Mapping[str, Any],
        packed: bool = False,
        dtype: Any = None,
        name: str = "decoder",
        **options: Any,
    ):
        config = config if isinstance(config, DecoderConfig) else DecoderConfig.from_dict(config)
        policy = keras.dtype_policies.get(keras.config.dtype_policy() if dtype is None else dtype)
        spread = config.embedding_initializer_range

        # Layers
        token_embedding = Embedding(
            config.vocabulary_size, config.hidden_dim, spread, name="token_embedding", dtype=policy
        )
        position_embedding = rotation_layer = embedding_norm = head = cap = None
        if config.position_embedding == "learned":
            position_embedding = PositionEmbedding(
                config.max_sequence_length, config.hidden_dim, spread, packed, name="position_embedding", dtype=policy
            )
        else:
            rotation_layer = RotaryEmbedding(config, packed, name="rotation", dtype=policy)
        mask_layer = AttentionMask(config, packed, name="attention_mask", dtype=policy)
        if config.embedding_normalization:
            embedding_norm = normalization(config, "embedding_norm", policy)
        embedding_dropout = Dropout(config.dropout, 0, name="embedding_dropout", dtype=policy)
        blocks = [
            TransformerBlock(config, number, name=f"block_{number}", dtype=policy)
            for number in range(config.num_layers)
        ]
        final_norm = normalization(config, "final_norm", policy, config.final_norm_initial_scale)
        if not config.tie_embeddings:
            head = OutputHead(config.vocabulary_size, config.head_initializer_range, name="head", dtype=policy)
        if config.logit_soft_cap is not None:
            cap = SoftCap(config.logit_soft_cap, name="soft_cap", dtype=policy)
        with keras.name_scope(name):  # Every variable's path begins with the model's name.
            for layer in (token_embedding, position_embedding, embedding_norm, *blocks, final_norm, head):
                if layer is not None:
                    layer.build((None, None, config.hidden_dim))

        # Functional model
        names = ("token_ids", "positions", "segment_ids") if packed else ("token_ids",)
        inputs = {key: keras.Input((None,), dtype="int32", name=key) for key in names}
        token_ids = inputs["token_ids"]
        mask = mask_layer(inputs.get("segment_ids", token_ids))
        hidden = token_embedding(token_ids)
        if position_embedding is not None:
            hidden = keras.layers.Add(name="embedding_sum", dtype=policy)(
                [hidden, position_embedding(inputs.get("positions", token_ids))]
            )
        rotation = None if rotation_layer is None else rotation_layer(inputs.get("positions", token_ids))
        if embedding_norm is not None:
            hidden = embedding_norm(hidden)
        hidden = embedding_dropout(hidden)
        for block in blocks:
            hidden = block(hidden, mask, rotation if config.rotates(block.number) else None)
        hidden = final_norm(hidden)
        logits = token_embedding(hidden, reverse=True) if head is None else head(hidden)
        super().__init__(inputs=inputs, outputs=logits if cap is None else cap(logits), name=name, **options)

        # Config
        self.config, self.packed, self.dtype_policy = config, packed, policy
        self.lora_dropout = 0.0  # Set by `lora.enable_lora`.
        self.backbone = keras.Model(inputs, hidden, name=f"{name}_backbone")
        self.token_embedding, self.position_embedding, self.head = token_embedding, position_embedding, head
        self.embedding_norm, self.rotation = embedding_norm, rotation_layer
        self.blocks, self.final_norm = blocks, final_norm

    def __call__(self, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """Computes the logits."""
        if inputs["token_ids"].shape[1] is not None:
            # The mask checks it too, but Keras wraps a layer's errors in a RuntimeError of many lines.
            checked_length(inputs["token_ids"], self.config.max_sequence_length)
        return super().__call__(inputs, *arguments, **options)

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Applies the head and the soft cap: [..., hidden_dim] → [..., vocabulary] float32."""
        logits = self.token_embedding(hidden, reverse=True) if self.head is None else self.head(hidden)
        return soft_cap(logits, self.config.logit_soft_cap)

    @property
    def output_variable(self) -> keras.Variable:
        """The rows of the head, [vocabulary, hidden_dim], tied or not."""
        return self.token_embedding.embeddings if self.head is None else self.head.kernel

    def output_weights(self) -> tf.Tensor:
        """Returns the value of `output_variable`, in its own dtype."""
        return tf.convert_to_tensor(self.output_variable.value)

    def empty_cache(self, batch_size: Any, length: Any) -> Cache:
        """Returns a (key, value) pair for each block: zeros [batch_size, key-value heads, length, head_dim]."""
        shape = [batch_size, self.config.num_key_value_heads, length, self.config.head_dim]
        return [(tf.zeros(shape, self.compute_dtype), tf.zeros(shape, self.compute_dtype)) for _ in self.blocks]

    def as_past(self, cache: Cache) -> Cache:
        """Returns a cache as the `past` of `call_with_cache`: keys [batch, key-value heads, head_dim, length].

        In this layout, the products of a query with all keys take a third of the time (docs/measurements.md).
        """
        return [(tf.transpose(key, [0, 1, 3, 2]), value) for key, value in cache]

    def call_with_cache(
        self,
        token_ids: tf.Tensor,
        positions: tf.Tensor,
        cache: Cache,
        cache_index: tf.Tensor,
        valid: tf.Tensor,
        past: Cache | None = None,
    ) -> tuple[tf.Tensor, Cache]:
        """Computes the hidden states of new tokens, with the keys and values of earlier ones. Rows are left-padded.

        A loop should keep its cache short, because each step copies it, and the preceding tokens in `past`.

        Args:
            token_ids: [batch, length] int32, written to the slots from `cache_index` on.
            positions: [batch, length] int32, slot minus the row's padding; negative ones count as 0.
            cache: the result of `empty_cache` or of the last call.
            cache_index: scalar int32.
            valid: [batch, slots] bool, false for padding. A query at slot t sees slot s if valid[b, s], s <= t, and s
                is within the sliding window. A query that sees nothing gives finite numbers. The slots of the past
                come first.
            past: the read-only result of `as_past` that precedes the cache, or None.

        Returns:
            Hidden states [batch, length, hidden_dim] in the compute dtype (see `logits`), and the new cache.
        """
        positions = tf.maximum(positions, 0)
        checked_length(token_ids, self.config.max_sequence_length)
        length = token_ids.shape[1] or tf.shape(token_ids)[1]
        first_slot = cache_index if past is None else tf.shape(past[0][1])[2] + cache_index
        mask = cache_mask(valid, first_slot, length, self.config.sliding_window)
        hidden = self.token_embedding(token_ids)
        if self.position_embedding is not None:
            hidden += self.position_embedding.at(positions)
        rotation = None if self.rotation is None else self.rotation.at(positions)
        if self.embedding_norm is not None:
            hidden = self.embedding_norm(hidden)
        new_cache = []
        pasts: Sequence[Any] = [None] * len(cache) if past is None else past
        for block, pair, block_past in zip(self.blocks, cache, pasts):
            block_rotation = rotation if self.config.rotates(block.number) else None
            hidden, pair = block.call_with_cache(hidden, mask, block_rotation, pair, cache_index, block_past)
            new_cache.append(pair)
        return self.final_norm(hidden), new_cache

    def get_config(self) -> dict[str, Any]:
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        return {"config": self.config.to_dict(), "packed": self.packed, "dtype": policy, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Decoder:
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfgpt")
class TransformerBlock(ConfiguredLayer):
    """Pre-normalized transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        config: a `DecoderConfig` or its dictionary.
        number: the block's index, from 0.

    Example:

    >>> block = TransformerBlock({"hidden_dim": 12, "num_query_heads": 3, "position_embedding": "learned"}, number=0)
    >>> block(tf.ones([1, 5, 12]), tf.zeros([5, 5])).shape
    TensorShape([1, 5, 12])
    """

    def __init__(self, config: DecoderConfig | Mapping[str, Any], number: int, **options: Any):
        super().__init__(config, **options)
        self.number = number

    def build(self, input_shape: tuple[Any, ...]) -> None:
        config, policy = self.config, self.dtype_policy
        first_dropout = 1 + DROPOUTS_PER_BLOCK * self.number
        self.attention_norm = normalization(config, "attention_norm", policy)
        self.attention = SelfAttention(config, first_dropout, name="attention", dtype=policy)
        self.attention_dropout = Dropout(config.dropout, first_dropout + 1, name="attention_dropout", dtype=policy)
        self.mlp_norm = normalization(config, "mlp_norm", policy)
        self.mlp = MLP(config, name="mlp", dtype=policy)
        self.mlp_dropout = Dropout(config.dropout, first_dropout + 2, name="mlp_dropout", dtype=policy)
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            layer.build(input_shape)

    def call(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor,
        rotation: Sequence[tf.Tensor] | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Returns a tensor of the inputs' shape [batch, length, hidden_dim].

        Args:
            mask: float32, broadcast to [batch, 1, 1, length, length].
            rotation: the tables of `RotaryEmbedding`, or None.
        """
        if not (self.config.rematerialize and training):
            return self.forward(inputs, mask, rotation, training)
        # The backward pass runs the block again outside any scope. So the seed is captured here, and the weights are
        # arguments, for the same gradients under every strategy.
        seed, trained, frozen = current_dropout_seed(), self.trainable_variables, self.non_trainable_variables

        def forward(inputs: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
            with keras.StatelessScope(list(zip([*trained, *frozen], weights))), dropout_seed(seed):
                return self.forward(inputs, mask, rotation, training)

        weights, constants = (
            [tf.convert_to_tensor(variable.value) for variable in variables] for variables in (trained, frozen)
        )
        return rematerialized(forward, constants)(inputs, *weights)

    def forward(
        self, inputs: tf.Tensor, mask: tf.Tensor, rotation: Sequence[tf.Tensor] | None, training: bool | None
    ) -> tf.Tensor:
        attended = self.attention(self.attention_norm(inputs), rotation, mask, training=training)
        hidden = inputs + self.attention_dropout(attended, training=training)
        return hidden + self.mlp_dropout(self.mlp(self.mlp_norm(hidden)), training=training)

    def call_with_cache(
        self, inputs: tf.Tensor, mask: tf.Tensor, rotation: Sequence[tf.Tensor] | None, *cache: Any
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """Returns the output and the new cache; `cache` are the last arguments of `SelfAttention.call_with_cache`."""
        attended, new_cache = self.attention.call_with_cache(self.attention_norm(inputs), rotation, mask, *cache)
        hidden = inputs + attended
        return hidden + self.mlp(self.mlp_norm(hidden)), new_cache


def normalization(config: DecoderConfig, name: str, policy: Any, initial_scale: float = 1.0) -> Normalization:
    return Normalization(
        config.normalization,
        config.normalization_epsilon,
        config.normalization_scale,
        config.normalization_bias,
        initial_scale,
        name=name,
        dtype=policy,
    )


def rematerialized(function: Callable[..., tf.Tensor], constants: Sequence[tf.Tensor] = ()) -> Callable[..., tf.Tensor]:
    """Wraps a function of tensors so that only its arguments are kept for the backward pass, which runs it again.

    `constants` are its last arguments and get no gradient.

    Unlike `tf.recompute_grad`, the second run depends on the upstream gradient through an optimization barrier, which
    the TPU's compiler respects (docs/measurements.md). XLA for CPUs drops the barrier before it merges equal
    operations; there the term `zero`, which is not constant for non-finite gradients, prevents the merge.
    """

    @tf.custom_gradient
    def run(*arguments: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            first, *others, upstream = optimization_barrier([*arguments, *constants, upstream])
            zero = 0.0 * tf.reshape(upstream, [-1])[0]
            others, unchanged = others[: len(arguments) - 1], others[len(arguments) - 1 :]
            held = [first + tf.cast(zero, first.dtype), *others]
            with tf.GradientTape() as tape:
                tape.watch(held)
                output = function(*held, *unchanged)
            return tape.gradient(output, held, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        return function(*arguments, *constants), gradient

    return run
