"""Signals as wishes: the first is heard, the second ends, and one wish that comes twice stays one."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import os, signal, sys, time
from tfgpt.training import stopping
stopping.SAME_WISH = float(sys.argv[1])
with stopping.StopSignals() as signals:
    for name in sys.argv[2:]:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.2)
    print("heard", signals.requested)
"""


@pytest.mark.parametrize(
    ("same_wish", "signals", "code"),
    [
        ("5", ["SIGTERM"], 0),
        ("5", ["SIGTERM", "SIGTERM"], 0),
        ("0.1", ["SIGTERM", "SIGTERM"], -signal.SIGTERM),
        ("5", ["SIGINT"], 0),
        ("5", ["SIGINT", "SIGINT"], None),
        ("5", ["SIGINT", "SIGTERM"], 0),
    ],
)
def test_a_second_signal_ends_at_once_unless_it_is_the_first_passed_on(same_wish, signals, code):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, same_wish, *signals], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if code is None:
        # Python's own SIGINT handling may turn the default action into its exit code.
        assert done.returncode in (-signal.SIGINT, 130, 1) and "ending at once" in done.stderr
    else:
        assert done.returncode == code, done.stderr
        assert ("heard" in done.stdout) == (code == 0)
