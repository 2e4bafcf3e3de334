"""The peak of this device, measured: how many floating-point operations a second its matrix products do."""

from __future__ import annotations

import functools
import time

import tensorflow as tf

SECONDS = 0.5
SIDES = {"CPU": 1536, "GPU": 8192}


@functools.cache
def measured_peak_flops(dtype: str) -> float:
    """FLOP/s of the best of several large matrix products, one multiplication and addition counted as two.

    What model-FLOPs utilization divides by. Takes about half a second (once a process and dtype).

    Args:
        dtype: "float32", or "mixed_bfloat16" for products in bfloat16.
    """
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    side = SIDES[device]
    compute_dtype = "bfloat16" if "bfloat16" in dtype else dtype
    matrix = tf.cast(tf.random.stateless_uniform([side, side], [0, 0]), compute_dtype)

    @tf.function
    def product() -> tf.Tensor:
        # One number comes back: it waits for the product without moving it off the device.
        return tf.matmul(matrix, matrix)[0, 0]

    product().numpy()
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        started = time.perf_counter()
        product().numpy()
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best
