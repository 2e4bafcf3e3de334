"""The decoder's matrices: a projection, its low-rank adapter, and its kernel in eight bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier as optimization_barrier

from tfgpt.model.dropout import Dropout, current_dropout_seed


def initializer(standard_deviation: float) -> keras.initializers.Initializer:
    """A normal initializer whose seed follows `keras.utils.set_random_seed`; zeros for 0."""
    if standard_deviation == 0.0:
        return keras.initializers.Zeros()
    return keras.initializers.RandomNormal(stddev=standard_deviation)


def project(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """inputs [..., in] · kernel [in, out] + bias [out] → [..., out], as one matrix product of rank 2."""
    output = tf.matmul(tf.reshape(inputs, [-1, kernel.shape[0]]), kernel)  # (all tokens, out)
    if bias is not None:
        output = tf.nn.bias_add(output, bias)
    return tf.reshape(output, [*leading_shape(inputs), kernel.shape[1]])


def project_transposed(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """As `project` with a kernel [out, in]; for one token a row (length 1) in the order that few rows want.

    A row of an [out, in] kernel is read from end to end for each output. In bfloat16, on one core, 576 x 1536 took 192
    instead of 359 microseconds with one row and 186 instead of 379 with eight; in float32 it is no quicker (TF 2.21).
    """
    flat = tf.reshape(inputs, [-1, kernel.shape[1]])  # (all tokens, in)
    if inputs.shape.rank == 3 and inputs.shape[1] == 1:
        output = tf.transpose(tf.matmul(kernel, flat, transpose_b=True))
    else:
        output = tf.matmul(flat, kernel, transpose_b=True)
    if bias is not None:
        output = tf.nn.bias_add(output, bias)
    return tf.reshape(output, [*leading_shape(inputs), kernel.shape[0]])


def leading_shape(inputs: tf.Tensor) -> list[Any]:
    """The shape but the last axis: -1 for one unknown size, tensors only where more are unknown."""
    static = inputs.shape[:-1].as_list()
    if static.count(None) == 1:
        return [-1 if size is None else size for size in static]
    return [tf.shape(inputs)[axis] if size is None else size for axis, size in enumerate(static)]


class DecoderLayer(keras.layers.Layer):
    """Base of the decoder's layers: no autocast, and a cast of its own."""

    def __init__(self, **options: Any):
        super().__init__(autocast=False, **options)

    def compute(self, variable: Any) -> tf.Tensor:
        """A variable's value in the compute dtype."""
        value = tf.convert_to_tensor(variable.value)
        return value if value.dtype.name == self.compute_dtype else tf.cast(value, self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfgpt")
class Projection(DecoderLayer):
    """A matrix and perhaps a bias: [..., in] → [..., units]. The kernel is stored as [in, units].

    Names and meaning of `enable_lora` are those of `keras.layers.Dense`. Two things differ. The adapter is always
    multiplied with the inputs, (x A) B, as Keras does it for int8 kernels only: adding A B to a float kernel at each
    call would cost a kernel's size of memory, and the gradient of a whole kernel. And a bias is frozen with its kernel,
    so that an adapter is all there is to save.

    Args:
        units: width of the output.
        use_bias: add a bias, initially zero.
        initializer_range: standard deviation of the initial kernel; None: 1 / sqrt(in).
        initializer_factor: multiplies that deviation; 0 starts the kernel at zero.

    Attributes:
        kernel: [in, units]; int8 after `quantize_kernel`; [units, in] after `transpose_kernel`.
        kernel_scale: [units] float32, after `quantize_kernel`: the kernel is `kernel / kernel_scale`.
        lora_kernel_a, lora_kernel_b: [in, rank] and [rank, units] float32, after `enable_lora`.
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
        """Makes `kernel` [in, units] and `bias` [units]."""
        width = input_shape[-1]
        deviation = (
            width**-0.5 if self.initializer_range is None else self.initializer_range
        ) * self.initializer_factor
        self.kernel = self.add_weight(shape=(width, self.units), initializer=initializer(deviation), name="kernel")
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

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
            lora_alpha: see above; None: the rank.
            dropout: fraction of the adapter's inputs dropped, wherever a `dropout_seed` is handed in.
            dropout_number: as `Dropout`'s.
            a_initializer, b_initializer: Keras initializers.
        """
        if self.lora_enabled:
            raise ValueError("lora is already enabled. This can only be done once per layer.")
        with self.new_variables():
            self.lora_kernel_a, self.lora_kernel_b = (
                self.add_weight(shape=shape, initializer=start, dtype="float32", name=name)
                for name, shape, start in (
                    ("lora_kernel_a", (self.kernel.shape[0], rank), a_initializer),
                    ("lora_kernel_b", (rank, self.units), b_initializer),
                )
            )
            self.lora_drop = Dropout(dropout, dropout_number, name="lora_dropout", dtype=self.dtype_policy)
        for variable in (self.kernel, self.bias):
            if variable is not None:
                variable.trainable = False
        self.lora_enabled = True
        self.lora_rank, self.lora_alpha = rank, rank if lora_alpha is None else lora_alpha

    def quantize_kernel(self) -> None:
        """Replaces the kernel by eight-bit integers and a scale for each output (`keras.quantizers.abs_max_quantize`).

        The kernel is made whole again at each use, in the compute dtype, and never kept: neither between calls nor for
        the backward pass. It cannot be trained any more.
        """
        values, scale = keras.quantizers.abs_max_quantize(np.asarray(self.kernel.numpy()), axis=0, to_numpy=True)
        with self.new_variables():
            self._untrack_variable(self.kernel)
            self.kernel = self.add_weight(
                shape=values.shape,
                initializer=lambda *_, **__: values,
                dtype="int8",
                trainable=False,
                autocast=False,
                name="kernel",
            )
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
        """Stores the kernel as [units, in] from now on: for decoding alone, not for training and not to be saved."""
        if self.transposed or self.kernel_scale is not None:
            return
        values = tf.transpose(tf.convert_to_tensor(self.kernel.value))
        with self.new_variables():
            self._untrack_variable(self.kernel)
            self.kernel = self.add_weight(
                shape=values.shape, initializer=lambda *_, **__: values, trainable=False, name="kernel"
            )
        self.transposed = True

    @contextlib.contextmanager
    def new_variables(self) -> Iterator[None]:
        """A built layer takes new variables inside, under its own path."""
        self._tracker.unlock()
        with contextlib.ExitStack() as stack:
            for name in self.kernel.path.split("/")[:-1]:
                stack.enter_context(keras.name_scope(name))
            yield
        self._tracker.lock()

    def merged_kernel(self) -> np.ndarray:
        """The kernel as plain numbers, the adapter added: [in, units], float32 where there is an adapter or int8."""
        kernel = self.kernel.numpy()
        if self.kernel_scale is not None:
            kernel = kernel.astype(np.float32) / self.kernel_scale.numpy()
        if self.lora_enabled:
            product = self.lora_kernel_a.numpy() @ self.lora_kernel_b.numpy()
            kernel = kernel.astype(np.float32) + self.lora_alpha / self.lora_rank * product
        return kernel

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[..., in] → [..., units], in the compute dtype."""
        bias = None if self.bias is None else self.compute(self.bias)
        if self.transposed:
            output = project_transposed(inputs, self.compute(self.kernel), bias)
        elif self.kernel_scale is None:
            output = project(inputs, self.compute(self.kernel), bias)
        else:
            kernel = tf.convert_to_tensor(self.kernel.value)
            output = project_eight_bits(inputs, kernel, 1.0 / tf.convert_to_tensor(self.kernel_scale.value), bias)
        if not self.lora_enabled:
            return output
        # Only a training step hands in a seed.
        dropped = self.lora_drop(inputs, training=current_dropout_seed() is not None)
        low = project(dropped, self.compute(self.lora_kernel_a))  # (..., rank)
        factor = tf.cast(self.lora_alpha / self.lora_rank, low.dtype)
        return output + project(low * factor, self.compute(self.lora_kernel_b))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "initializer_range": self.initializer_range,
            "initializer_factor": self.initializer_factor,
        }


def project_eight_bits(
    inputs: tf.Tensor, kernel: tf.Tensor, inverse_scale: tf.Tensor, bias: tf.Tensor | None = None
) -> tf.Tensor:
    """As `project` with the kernel `kernel [in, out] int8 x inverse_scale [out] float32`, which gets no gradient.

    Left to TensorFlow, the float copy of every kernel would be kept from the forward to the backward pass, and the
    eight bits would save nothing: the gradient makes the copy again (as `keras.layers.Dense` does), behind a barrier so
    that neither TensorFlow nor XLA finds the two copies equal (see `decoder.rematerialized`).
    """

    @tf.custom_gradient
    def product(inputs: tf.Tensor) -> tuple[tf.Tensor, Any]:
        scale = tf.cast(inverse_scale, inputs.dtype)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            held, upstream = optimization_barrier([kernel, upstream])
            held += tf.cast(0.0 * tf.reshape(upstream, [-1])[0], tf.int8)
            return tf.matmul(upstream * scale, tf.cast(held, upstream.dtype), transpose_b=True)

        return tf.matmul(inputs, tf.cast(kernel, inputs.dtype)) * scale, gradient

    output = product(tf.reshape(inputs, [-1, kernel.shape[0]]))  # (all tokens, out)
    if bias is not None:
        output = tf.nn.bias_add(output, bias)
    return tf.reshape(output, [*leading_shape(inputs), kernel.shape[1]])
