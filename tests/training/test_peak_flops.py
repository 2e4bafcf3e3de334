"""The measured peak of matrix products."""

import time

import numpy as np

from tfgpt.training.peak_flops import measured_peak_flops


def test_float32_peak_is_near_numpys_and_measured_once():
    side = 1024
    matrix = np.ones((side, side), np.float32)
    best = min(timed(lambda: matrix @ matrix) for _ in range(5))
    measured = measured_peak_flops("float32")
    # Another library's product on the same cores, which other work may share.
    assert 0.1 < measured / (2 * side**3 / best) < 10
    assert timed(lambda: measured_peak_flops("float32")) < 0.01


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def test_bfloat16_has_a_peak():
    assert measured_peak_flops("mixed_bfloat16") > 1e8
