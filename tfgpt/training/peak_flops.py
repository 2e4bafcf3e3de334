"""Measures the peak of this device in floating-point operations per second."""

from __future__ import annotations

import functools
import time

import tensorflow as tf

SECONDS = 0.5
SIDES = {"CPU": 1536, "GPU": 8192}


@functools.cache
def measured_peak_flops(dtype: str) -> float:
    """Returns the FLOP/s of the fastest of several large matrix products, for model-FLOPs utilization.

    A multiplication and an addition count as two. Takes about half a second, once a process and dtype ("float32", or
    "mixed_bfloat16" for products in bfloat16).
    """
    side = SIDES["GPU" if tf.config.list_logical_devices("GPU") else "CPU"]
    matrix = tf.random.stateless_uniform([side, side], [0, 0])
    matrix = tf.cast(matrix, "bfloat16" if "bfloat16" in dtype else dtype)

    @tf.function
    def product() -> tf.Tensor:
        # Fetching one element waits for the product without copying it from the device.
        return tf.matmul(matrix, matrix)[0, 0]

    product().numpy()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (started := time.perf_counter()) < end:
        product().numpy()
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best
