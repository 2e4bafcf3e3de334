"""Claims about the memory that processes hold."""

import os
import sys

import numpy as np
import pytest

from tfgpt.common.process_memory import forget_peak, held_memory, peak_memory


def test_another_process_and_this_one_hold_memory_and_one_that_is_gone_holds_none():
    assert held_memory() > 10 << 20
    assert held_memory(os.getppid()) > 0
    assert held_memory(2**22 + 1) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be forgotten on Linux alone")
def test_the_peak_of_this_process_shows_memory_that_was_given_back():
    assert forget_peak()
    before = held_memory()
    held = np.ones(200 << 17)  # 200 MiB
    del held
    assert peak_memory() - before > 150 << 20
    assert held_memory() - before < 100 << 20
