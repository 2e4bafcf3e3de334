"""The decoder's dense layer, with low-rank adapters and int8 kernels, and its matrix products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier as optimization_barrier

from tfgpt.model.decoder_layer import DecoderLayer
from tfgpt.model.dropout import Dropout, current_dropout_seed


@keras.saving.register_keras_serializable(package="tfgpt")
class Projection(DecoderLayer):
    """A dense layer with optional low-rank adapter and int8 kernel: [..., in] → [..., units].

    `enable_lora` is that of `keras.layers.Dense`, with two differences. The adapter is always computed as (x A) B and
    not added to the kernel, which would cost a kernel's memory and the gradient of a whole kernel. And the bias is
    frozen with the kernel, so that only the adapter needs to be saved.

    Args:
        units: width of the output.
        use_bias: adds a bias, initially zero.
        initializer_range: standard deviation of the initial kernel; None: 1 / sqrt(in).
        initializer_factor: multiplies that deviation; 0 starts the kernel at zero.

    Attributes:
        kernel: [in, units]; int8 after `quantize_kernel`; [units, in] after `transpose_kernel`.
        kernel_scale: [units] float32 after `quantize_kernel`; the dequantized kernel is `kernel / kernel_scale`.
        lora_kernel_a, lora_kernel_b: [in, rank] and [rank, units] float32 after `enable_lora`.

    Example:

    >>> layer = Projection(3)
    >>> layer.build((None, 2))
    >>> layer.enable_lora(rank=1)
    >>> layer(tf.ones([4, 2])).shape, len(layer.trainable_variables)
    (TensorShape([4, 3]), 2)
    """

    def __init__(
        self,
        units: int,
        use_bias: bool = False,
        initializer_range: float | None = 0.02,
        initializer_factor: float = 1.0,
        **options: Any,
    ):
        super().__init__(**options)
        self.units, self.use_bias = units, use_bias
        self.initializer_range, self.initializer_factor = initializer_range, initializer_factor
        self.bias: Any = None
        self.kernel_scale: Any = None
        self.transposed = False
        self.lora_enabled = False

    def build(self, input_shape: tuple[Any, ...]) -> None:
        width = input_shape[-1]
        deviation = width**-0.5 if self.initializer_range is None else self.initializer_range
        deviation *= self.initializer_factor
        self.kernel = self.add_weight(shape=(width, self.units), initializer=initializer(deviation), name="kernel")
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [..., units] in the compute dtype for inputs [..., in]."""
        bias = None if self.bias is None else self.compute(self.bias)
        if self.transposed:
            output = project_transposed(inputs, self.compute(self.kernel), bias)
        elif self.kernel_scale is None:
            output = project(inputs, self.compute(self.kernel), bias)
        else:
            kernel = tf.convert_to_tensor(self.kernel.value)
            output = project_int8(inputs, kernel, 1.0 / tf.convert_to_tensor(self.kernel_scale.value), bias)
        if not self.lora_enabled:
            return output
        # Only a training step sets a dropout seed.
        dropped = self.lora_drop(inputs, training=current_dropout_seed() is not None)
        low = project(dropped, self.compute(self.lora_kernel_a))  # (..., rank)
        factor = tf.cast(self.lora_alpha / self.lora_rank, low.dtype)
        return output + project(low * factor, self.compute(self.lora_kernel_b))

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        dropout: float = 0.0,
        dropout_number: int = 0,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        """Freezes kernel and bias and adds lora_alpha / rank · (x A) B to the output (Hu et al. 2021).

        Args:
            rank: columns of A and rows of B.
            lora_alpha: the scaling above; None: `rank`.
            dropout: fraction of the adapter's inputs dropped while a `dropout_seed` is set.
            dropout_number: number of its `Dropout` layer.
            a_initializer, b_initializer: Keras initializers.
        """
        if self.lora_enabled:
            raise ValueError("lora is already enabled. This can only be done once per layer.")
        with self.unlocked_variables():
            self.lora_kernel_a = self.add_weight(
                shape=(self.kernel.shape[0], rank), initializer=a_initializer, dtype="float32", name="lora_kernel_a"
            )
            self.lora_kernel_b = self.add_weight(
                shape=(rank, self.units), initializer=b_initializer, dtype="float32", name="lora_kernel_b"
            )
            self.lora_drop = Dropout(dropout, dropout_number, name="lora_dropout", dtype=self.dtype_policy)
        for variable in (self.kernel, self.bias):
            if variable is not None:
                variable.trainable = False
        self.lora_enabled = True
        self.lora_rank, self.lora_alpha = rank, rank if lora_alpha is None else lora_alpha

    def quantize_kernel(self) -> None:
        """Replaces the kernel by int8 numbers with a scale for each output (`keras.quantizers.abs_max_quantize`).

        The kernel is dequantized at each use and the copy is not kept, not even for the backward pass. It cannot be
        trained any more.
        """
        values, scale = keras.quantizers.abs_max_quantize(np.asarray(self.kernel.numpy()), axis=0, to_numpy=True)
        with self.unlocked_variables():
            self.replace_kernel(values, dtype="int8", autocast=False)
            self.kernel_scale = self.add_weight(
                shape=(self.units,),
                initializer=lambda *_, **__: tf.reshape(scale, [-1]),
                dtype="float32",
                trainable=False,
                name="kernel_scale",
            )
        if self.bias is not None:
            self.bias.trainable = False

    def transpose_kernel(self) -> None:
        """Stores the kernel as [units, in], for decoding only: the layer cannot be trained or saved afterwards."""
        if self.transposed or self.kernel_scale is not None:
            return
        with self.unlocked_variables():
            self.replace_kernel(tf.transpose(tf.convert_to_tensor(self.kernel.value)))
        self.transposed = True

    def merged_kernel(self) -> np.ndarray:
        """Returns kernel and adapter as one array [in, units], float32 if there is an adapter or an int8 kernel."""
        kernel = self.kernel.numpy()
        if self.kernel_scale is not None:
            kernel = kernel.astype(np.float32) / self.kernel_scale.numpy()
        if self.lora_enabled:
            product = self.lora_kernel_a.numpy() @ self.lora_kernel_b.numpy()
            kernel = kernel.astype(np.float32) + self.lora_alpha / self.lora_rank * product
        return kernel

    @contextlib.contextmanager
    def unlocked_variables(self) -> Iterator[None]:
        """Lets a built layer add and remove variables, under its own path."""
        self._tracker.unlock()
        with contextlib.ExitStack() as stack:
            for name in self.kernel.path.split("/")[:-1]:
                stack.enter_context(keras.name_scope(name))
            yield
        self._tracker.lock()

    def replace_kernel(self, values: Any, **options: Any) -> None:
        self._untrack_variable(self.kernel)
        self.kernel = self.add_weight(
            shape=values.shape, initializer=lambda *_, **__: values, trainable=False, name="kernel", **options
        )


def initializer(standard_deviation: float) -> keras.initializers.Initializer:
    """Returns a normal initializer that follows `keras.utils.set_random_seed`; zeros for a deviation of 0."""
    if standard_deviation == 0.0:
        return keras.initializers.Zeros()
    return keras.initializers.RandomNormal(stddev=standard_deviation)


def leading_shape(inputs: tf.Tensor) -> list[Any]:
    """Returns the shape without the last axis: -1 for a single unknown size, tensors for several."""
    static = inputs.shape[:-1].as_list()
    if static.count(None) == 1:
        return [-1 if size is None else size for size in static]
    return [tf.shape(inputs)[axis] if size is None else size for axis, size in enumerate(static)]


def project(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """Returns inputs [..., in] · kernel [in, out] + bias [out], as one matrix product of rank 2."""
    return add_bias(tf.matmul(tf.reshape(inputs, [-1, kernel.shape[0]]), kernel), bias, inputs)


def project_transposed(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """Returns `project` for a kernel [out, in].

    In bfloat16, inputs of one token (length 1) take half the time that they take with an [in, out] kernel
    (docs/measurements.md).
    """
    flat = tf.reshape(inputs, [-1, kernel.shape[1]])  # (all tokens, in)
    if inputs.shape.rank == 3 and inputs.shape[1] == 1:
        output = tf.transpose(tf.matmul(kernel, flat, transpose_b=True))
    else:
        output = tf.matmul(flat, kernel, transpose_b=True)
    return add_bias(output, bias, inputs)


def project_int8(
    inputs: tf.Tensor, kernel: tf.Tensor, inverse_scale: tf.Tensor, bias: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns `project` for the kernel `kernel [in, out] int8 x inverse_scale [out] float32`, which gets no gradient.

    Plain TensorFlow would keep the float copy of every kernel for the backward pass. The gradient here dequantizes
    again, as `keras.layers.Dense` does, with a barrier so that neither TensorFlow nor XLA merges the two copies (see
    `decoder.rematerialized`).
    """

    @tf.custom_gradient
    def product(inputs: tf.Tensor) -> tuple[tf.Tensor, Any]:
        scale = tf.cast(inverse_scale, inputs.dtype)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            held, upstream = optimization_barrier([kernel, upstream])
            held += tf.cast(0.0 * tf.reshape(upstream, [-1])[0], tf.int8)
            return tf.matmul(upstream * scale, tf.cast(held, upstream.dtype), transpose_b=True)

        return tf.matmul(inputs, tf.cast(kernel, inputs.dtype)) * scale, gradient

    return add_bias(product(tf.reshape(inputs, [-1, kernel.shape[0]])), bias, inputs)


def add_bias(output: tf.Tensor, bias: tf.Tensor | None, inputs: tf.Tensor) -> tf.Tensor:
    """Adds a bias to output [all tokens, out] and gives it the leading shape of `inputs`."""
    if bias is not None:
        output = tf.nn.bias_add(output, bias)
    return tf.reshape(output, [*leading_shape(inputs), output.shape[-1]])
