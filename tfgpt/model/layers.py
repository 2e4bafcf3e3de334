"""The decoder's small layers: normalization, embeddings, output head, feed-forward network."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfgpt.model.decoder_layer import ConfiguredLayer, DecoderLayer
from tfgpt.model.projection import Projection, initializer, leading_shape


@keras.saving.register_keras_serializable(package="tfgpt")
class Normalization(DecoderLayer):
    """RMS norm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016) over the last axis.

    Means are taken in float32; their roots are applied in the compute dtype.

    Args:
        kind: "rms_norm" or "layer_norm".
        epsilon: added to the variance.
        use_scale: learns a factor for each channel.
        use_bias: learns an addend for each channel, initially zero.
        initial_scale: initial value of the factors.

    Example:

    >>> Normalization("layer_norm")(tf.constant([[1.0, 3.0]])).numpy().round(2).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(
        self,
        kind: str = "rms_norm",
        epsilon: float = 1e-6,
        use_scale: bool = True,
        use_bias: bool = False,
        initial_scale: float = 1.0,
        **options: Any,
    ):
        super().__init__(**options)
        self.kind, self.epsilon, self.use_scale, self.use_bias = kind, epsilon, use_scale, use_bias
        self.initial_scale = initial_scale
        self.scale = self.bias = None

    def build(self, input_shape: tuple[Any, ...]) -> None:
        if self.use_scale:
            ones = keras.initializers.Constant(self.initial_scale)
            self.scale = self.add_weight(shape=(input_shape[-1],), initializer=ones, name="scale")
        if self.use_bias:
            self.bias = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="bias")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [..., width] in the compute dtype for inputs of that shape."""
        output = normalize(inputs, self.epsilon, centered=self.kind == "layer_norm")
        if self.scale is not None:
            output *= self.compute(self.scale)
        if self.bias is not None:
            output += self.compute(self.bias)
        return output


def normalize(inputs: tf.Tensor, epsilon: float, centered: bool) -> tf.Tensor:
    """Returns inputs / sqrt(mean of squares + epsilon) over the last axis; `centered` subtracts the mean first.

    The custom gradient keeps only the output and the root for the backward pass, which makes training steps faster in
    graph mode (docs/measurements.md).

    Args:
        inputs: [..., width]. Means are taken in float32, the rest in the inputs' dtype.
    """

    def mean(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.cast(values, tf.float32), -1, keepdims=True)

    @tf.custom_gradient
    def normalized(inputs: tf.Tensor) -> tuple[tf.Tensor, Any]:
        if centered:
            inputs -= tf.cast(mean(inputs), inputs.dtype)
        variance = tf.reduce_mean(tf.square(tf.cast(inputs, tf.float32)), -1, keepdims=True)
        factor = tf.cast(tf.math.rsqrt(variance + epsilon), inputs.dtype)  # (..., 1)
        output = inputs * factor

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            inside = upstream - output * tf.cast(mean(upstream * output), output.dtype)
            if centered:
                inside -= tf.cast(mean(upstream), output.dtype)
            return inside * factor

        return output, gradient

    return normalized(inputs)


@keras.saving.register_keras_serializable(package="tfgpt")
class Embedding(DecoderLayer):
    """A table of vectors [rows, width] that is looked up by integers. Its transpose is the tied output head.

    Example:

    >>> layer = Embedding(10, 4)
    >>> vectors = layer(tf.constant([[1, 2, 3]]))
    >>> vectors.shape, layer(vectors, reverse=True).shape
    (TensorShape([1, 3, 4]), TensorShape([1, 3, 10]))
    """

    def __init__(self, rows: int, width: int, initializer_range: float = 0.02, **options: Any):
        super().__init__(**options)
        self.rows, self.width, self.initializer_range = rows, width, initializer_range

    def build(self, input_shape: Any = None) -> None:
        self.embeddings = self.add_weight(
            shape=(self.rows, self.width), initializer=initializer(self.initializer_range), name="embeddings"
        )

    def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        """Returns [..., width] in the compute dtype for integers [...]; with `reverse`, logits for [..., width]."""
        if reverse:
            return head_logits(inputs, self.compute(self.embeddings))
        # Gather before the cast, which would copy the whole table.
        return tf.cast(tf.gather(tf.convert_to_tensor(self.embeddings.value), inputs), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfgpt")
class OutputHead(DecoderLayer):
    """An untied output head. The kernel is stored as [rows, in], like the embedding.

    Example:

    >>> OutputHead(10)(tf.ones([1, 3, 4])).shape
    TensorShape([1, 3, 10])
    """

    def __init__(self, rows: int, initializer_range: float = 0.02, **options: Any):
        super().__init__(**options)
        self.rows, self.initializer_range = rows, initializer_range

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.kernel = self.add_weight(
            shape=(self.rows, input_shape[-1]), initializer=initializer(self.initializer_range), name="kernel"
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns logits [..., rows] float32 for inputs [..., in]."""
        return head_logits(inputs, self.compute(self.kernel))


def head_logits(hidden: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns hidden [..., width] · rows [rows, width]ᵀ as float32; the product is taken in the dtype of the inputs.

    `hidden` [batch, width] is one token of each row, in decoding; then the transposed product is faster
    (docs/measurements.md).
    """
    if hidden.shape.rank == 2:
        return tf.cast(tf.transpose(tf.matmul(rows, hidden, transpose_b=True)), tf.float32)
    logits = tf.matmul(tf.reshape(hidden, [-1, rows.shape[1]]), rows, transpose_b=True)  # (all tokens, rows)
    return tf.reshape(tf.cast(logits, tf.float32), [*leading_shape(hidden), rows.shape[0]])


@keras.saving.register_keras_serializable(package="tfgpt")
class SoftCap(DecoderLayer):
    """Squashes logits into (-cap, cap): see `soft_cap`.

    Example:

    >>> SoftCap(5.0)(tf.constant([0.0, 1000.0])).numpy().tolist()
    [0.0, 5.0]
    """

    def __init__(self, cap: float, **options: Any):
        super().__init__(**options)
        self.cap = cap
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return soft_cap(inputs, self.cap)


def soft_cap(logits: tf.Tensor, cap: float | None) -> tf.Tensor:
    """Returns cap x tanh(logits / cap) (Gemma 2, arXiv 2408.00118, section 2), or the logits if `cap` is None."""
    return logits if cap is None else cap * tf.tanh(logits / cap)


@keras.saving.register_keras_serializable(package="tfgpt")
class MLP(ConfiguredLayer):
    """Feed-forward network: up-projection, activation, down-projection.

    The activation is `config.mlp`: "gelu" (tanh form, GPT-2), "swiglu" (silu(gate) x up, Shazeer 2020) or
    "squared_relu" (So et al. 2021).

    Example:

    >>> MLP({"mlp": "gelu", "hidden_dim": 12})(tf.ones([1, 2, 12])).shape
    TensorShape([1, 2, 12])
    """

    def build(self, input_shape: tuple[Any, ...]) -> None:
        config, inside = self.config, self.config.intermediate_dim

        def projection(units: int, name: str, width: int, factor: float = 1.0) -> Projection:
            layer = Projection(
                units, config.use_bias, config.initializer_range, factor, name=name, dtype=self.dtype_policy
            )
            layer.build((*input_shape[:-1], width))
            return layer

        width = input_shape[-1]
        if config.mlp == "swiglu":
            self.gate = projection(inside, "gate", width)
        self.up = projection(inside, "up", width)
        self.down = projection(width, "down", inside, config.output_initializer_factor)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns a tensor of the inputs' shape [..., width]."""
        up = self.up(inputs)
        if self.config.mlp == "swiglu":
            return self.down(tf.nn.silu(self.gate(inputs)) * up)
        return self.down(gelu(up) if self.config.mlp == "gelu" else tf.square(tf.nn.relu(up)))


@tf.custom_gradient
def gelu(inputs: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Returns the tanh-approximate GELU (Hendrycks and Gimpel 2016): x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).

    It is computed as x · sigmoid(2√(2/π) (x + 0.044715 x³)), which is equal. The custom gradient keeps two tensors.
    """
    linear = 2.0 * (2.0 / math.pi) ** 0.5
    cubic = 0.044715 * linear
    gate = tf.sigmoid(inputs * (linear + cubic * tf.square(inputs)))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return upstream * gate * (1.0 + inputs * (1.0 - gate) * (linear + 3.0 * cubic * tf.square(inputs)))

    return inputs * gate, gradient
