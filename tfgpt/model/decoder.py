"""The decoder-only transformer as one functional Keras model, configured; and its forward pass with a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier as optimization_barrier

from tfgpt.model.attention import SelfAttention
from tfgpt.model.config import DecoderConfig
from tfgpt.model.dropout import current_dropout_seed, dropout_seed
from tfgpt.model.layers import MLP, DecoderLayer, Dropout, Embedding, Normalization, OutputHead, SoftCap, soft_cap
from tfgpt.model.position_embeddings import (
    AttentionMask,
    PositionEmbedding,
    RotaryEmbedding,
    cache_mask,
    checked_length,
)

Cache = list[tuple[tf.Tensor, tf.Tensor]]

DROPOUTS_PER_BLOCK = 3


@keras.saving.register_keras_serializable(package="tfgpt")
class TransformerBlock(DecoderLayer):
    """Pre-normalized transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        config: the decoder's config, or its dictionary.
        number: the block's place, from 0.
    """

    def __init__(self, config: DecoderConfig | Mapping[str, Any], number: int, **options: Any):
        super().__init__(**options)
        self.decoder_config = config if isinstance(config, DecoderConfig) else DecoderConfig.from_dict(config)
        self.number = number

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Makes `attention_norm`, `attention`, `mlp_norm`, `mlp`."""
        config, policy = self.decoder_config, self.dtype_policy
        output_factor = 0.0 if config.zero_initialized_outputs else (2 * config.num_layers) ** -0.5
        dropout_number = 1 + DROPOUTS_PER_BLOCK * self.number
        self.attention_norm = normalization(config, "attention_norm", policy)
        self.attention = SelfAttention(
            config.num_query_heads,
            config.num_key_value_heads,
            config.head_dim,
            scale=config.attention_scale,
            query_key_norm=config.query_key_norm,
            normalization_epsilon=config.normalization_epsilon,
            normalization_scale=config.normalization_scale,
            use_query_key_value_bias=config.use_query_key_value_bias,
            use_bias=config.use_bias,
            initializer_range=config.initializer_range,
            output_factor=output_factor,
            query_factor=config.query_initializer_factor,
            dropout=config.dropout,
            dropout_number=dropout_number,
            sliding_window=config.sliding_window,
            name="attention",
            dtype=policy,
        )
        self.attention_dropout = Dropout(config.dropout, dropout_number + 1, name="attention_dropout", dtype=policy)
        self.mlp_norm = normalization(config, "mlp_norm", policy)
        self.mlp = MLP(
            config.mlp,
            config.intermediate_dim,
            use_bias=config.use_bias,
            initializer_range=config.initializer_range,
            output_factor=output_factor,
            name="mlp",
            dtype=policy,
        )
        self.mlp_dropout = Dropout(config.dropout, dropout_number + 2, name="mlp_dropout", dtype=policy)
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            layer.build(input_shape)

    def call(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor,
        rotation: Sequence[tf.Tensor] | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """inputs [batch, length, hidden_dim] → the same.

        Args:
            mask: float32, as `attention.attend`'s.
            rotation: as `attention.rotation_tables` makes, in the compute dtype.
        """
        if not (self.decoder_config.rematerialize and training):
            return self.forward(inputs, mask, rotation, training)
        # The backward pass runs the block again, outside any scope: the seed is kept from now, and the weights go in as
        # arguments, so that their gradients are found the same way under every strategy.
        seed, trained, frozen = current_dropout_seed(), self.trainable_variables, self.non_trainable_variables

        def again(inputs: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
            with keras.StatelessScope(list(zip([*trained, *frozen], weights))), dropout_seed(seed):
                return self.forward(inputs, mask, rotation, training)

        weights, constants = (
            [tf.convert_to_tensor(variable.value) for variable in variables] for variables in (trained, frozen)
        )
        return rematerialized(again, constants)(inputs, *weights)

    def forward(
        self, inputs: tf.Tensor, mask: tf.Tensor, rotation: Sequence[tf.Tensor] | None, training: bool | None
    ) -> tf.Tensor:
        """The block itself."""
        attended = self.attention(self.attention_norm(inputs), rotation, mask, training=training)
        hidden = inputs + self.attention_dropout(attended, training=training)
        return hidden + self.mlp_dropout(self.mlp(self.mlp_norm(hidden)), training=training)

    def call_with_cache(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor,
        rotation: Sequence[tf.Tensor] | None,
        cache: tuple[tf.Tensor, tf.Tensor],
        cache_index: tf.Tensor,
        past: tuple[tf.Tensor, tf.Tensor] | None = None,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """As `call` without training, with this block's cache and past; returns the output and the new cache."""
        attended, cache = self.attention.call_with_cache(
            self.attention_norm(inputs), rotation, mask, cache, cache_index, past
        )
        hidden = inputs + attended
        return hidden + self.mlp(self.mlp_norm(hidden)), cache

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.decoder_config.to_dict(), "number": self.number}


def rematerialized(function: Callable[..., tf.Tensor], constants: Sequence[tf.Tensor] = ()) -> Callable[..., tf.Tensor]:
    """`function` of tensors, which keeps its arguments for the backward pass and nothing else: that runs it again.

    `constants` are its last arguments, and get no gradient.

    `tf.recompute_grad` does the same, but the TPU's compiler sees through the dependency that it makes, finds the
    second run equal to the first and keeps the first one's tensors (libtpu 0.0.52: 166 MiB of temporaries with and
    without; so 26). A barrier stops it; XLA for CPUs drops the barrier before it looks for equals, and is stopped by a
    zero that is none where the upstream gradient is not finite.
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


def normalization(config: DecoderConfig, name: str, policy: Any, initial_scale: float = 1.0) -> Normalization:
    """The config's normalization."""
    return Normalization(
        config.normalization,
        config.normalization_epsilon,
        config.normalization_scale,
        config.normalization_bias,
        initial_scale,
        name=name,
        dtype=policy,
    )


@keras.saving.register_keras_serializable(package="tfgpt")
class Decoder(keras.Model):
    """A decoder-only transformer: {"token_ids": [batch, length] int32} → logits [batch, length, vocabulary] float32.

    Args:
        config: its shape.
        packed: rows hold several documents: the inputs are also "positions" (restarting at 0 with each document) and
            "segment_ids" (attention stays within equal ones), both [batch, length] int32.
        dtype: a Keras dtype policy or its name; None: the global one.
        name: the first part of every variable's path.

    Attributes:
        config: the config.
        backbone: the functional model of the same inputs to the final normalized hidden states
            [batch, length, hidden_dim], in the compute dtype.
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
        policy = (
            keras.dtype_policies.get(dtype)
            if dtype is not None
            else keras.dtype_policies.get(keras.config.dtype_policy())
        )

        # Layers
        token_embedding = Embedding(
            config.vocabulary_size,
            config.hidden_dim,
            config.embedding_initializer_range,
            name="token_embedding",
            dtype=policy,
        )
        position_embedding = rotation_layer = embedding_norm = head = None
        if config.position_embedding == "learned":
            position_embedding = PositionEmbedding(
                config.max_sequence_length,
                config.hidden_dim,
                config.embedding_initializer_range,
                packed,
                name="position_embedding",
                dtype=policy,
            )
        else:
            rotation_layer = RotaryEmbedding(
                config.head_dim,
                config.rope_max_wavelength,
                config.attention_scale,
                packed,
                scaling={
                    "scaling": config.rope_scaling,
                    "scaling_factor": config.rope_scaling_factor,
                    "original_length": config.rope_original_length,
                    "low_frequency_factor": config.rope_low_frequency_factor,
                    "high_frequency_factor": config.rope_high_frequency_factor,
                },
                name="rotation",
                dtype=policy,
            )
        mask_layer = AttentionMask(
            config.sliding_window, packed, config.max_sequence_length, name="attention_mask", dtype=policy
        )
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
        cap = None if config.logit_soft_cap is None else SoftCap(config.logit_soft_cap, name="soft_cap", dtype=policy)
        width = (None, None, config.hidden_dim)
        with keras.name_scope(name):  # So that every variable's path begins with the model's name.
            for layer in (token_embedding, position_embedding, embedding_norm, *blocks, final_norm, head):
                if layer is not None:
                    layer.build(width)

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
        if cap is not None:
            logits = cap(logits)
        super().__init__(inputs=inputs, outputs=logits, name=name, **options)

        # Config
        self.config = config
        self.packed = packed
        self.lora_dropout = 0.0  # As `lora.enable_lora` sets it.
        self.dtype_policy = policy
        self.backbone = keras.Model(inputs, hidden, name=f"{name}_backbone")
        self.token_embedding, self.position_embedding, self.head = token_embedding, position_embedding, head
        self.embedding_norm, self.rotation, self.blocks, self.final_norm = (
            embedding_norm,
            rotation_layer,
            blocks,
            final_norm,
        )

    def __call__(self, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """As the class says; `training` and Keras's other arguments as for any model.

        Raises:
            UserError: the input is longer than `max_sequence_length`.
        """
        if inputs["token_ids"].shape[1] is not None:
            # Also checked by the mask; but what a layer raises, Keras would bury in a RuntimeError of many lines.
            checked_length(inputs["token_ids"], self.config.max_sequence_length)
        return super().__call__(inputs, *arguments, **options)

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """The head and the soft cap: [..., hidden_dim] → [..., vocabulary] float32."""
        logits = self.token_embedding(hidden, reverse=True) if self.head is None else self.head(hidden)
        return soft_cap(logits, self.config.logit_soft_cap)

    @property
    def output_variable(self) -> keras.Variable:
        """The head's rows, [vocabulary, hidden_dim], tied or not."""
        return self.token_embedding.embeddings if self.head is None else self.head.kernel

    def output_weights(self) -> tf.Tensor:
        """`output_variable`'s value, in its own dtype."""
        return tf.convert_to_tensor(self.output_variable.value)

    def empty_cache(self, batch_size: Any, length: Any) -> Cache:
        """A (key, value) pair a block, each [batch_size, key-value heads, length, head_dim] zeros, compute dtype."""
        shape = [batch_size, self.config.num_key_value_heads, length, self.config.head_dim]
        return [(tf.zeros(shape, self.compute_dtype), tf.zeros(shape, self.compute_dtype)) for _ in self.blocks]

    def as_past(self, cache: Cache) -> Cache:
        """A cache as `call_with_cache` reads a past: keys [batch, key-value heads, head_dim, length].

        A query's products with all keys take a third of the time that way (one query a head, one core).
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
        """The forward pass over new tokens, with the keys and values of earlier ones. Rows are padded on the left.

        A cache that is written at each step of a loop should be short, since a step copies it: what stood before the
        loop is the loop's `past`.

        Args:
            token_ids: [batch, length] int32, written to the slots from `cache_index` on.
            positions: [batch, length] int32, slot minus the row's padding; below 0 counts as 0.
            cache: as `empty_cache` makes, or as returned by the last call.
            cache_index: scalar int32.
            valid: [batch, slots] bool, false for padding. A query at slot t sees slot s iff valid[b, s], s <= t, and s
                is within the sliding window. A query that sees nothing gives finite numbers. The slots of the past
                come first.
            past: what stands before the cache and is only read, as `as_past` makes; None for nothing.

        Returns:
            hidden states [batch, length, hidden_dim] in the compute dtype (see `logits`), and the new cache.
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
        written = []
        pasts: Sequence[Any] = [None] * len(cache) if past is None else past
        for block, pair, before in zip(self.blocks, cache, pasts):
            turned = rotation if self.config.rotates(block.number) else None
            hidden, pair = block.call_with_cache(hidden, mask, turned, pair, cache_index, before)
            written.append(pair)
        return self.final_norm(hidden), written

    def get_config(self) -> dict[str, Any]:
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        return {"config": self.config.to_dict(), "packed": self.packed, "dtype": policy, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Decoder:
        """The reverse of `get_config`."""
        return cls(**config)
