"""The small parent process: what is started again, what is not, and what a stop does."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.conftest import ROOT

COUNT = "import os, sys; open(sys.argv[1], 'a').write('x'); n = os.path.getsize(sys.argv[1]); "


def parent(restarts: int, program: str, *arguments: str) -> list[str]:
    """A process that runs `python -c program` under `run_with_restarts`."""
    code = (
        "import sys; from tfgpt.training.distribution import restarts; restarts.PAUSE = 0.1; "
        "sys.exit(restarts.run_with_restarts([sys.executable, '-c', *sys.argv[2:]], int(sys.argv[1])))"
    )
    return [sys.executable, "-c", code, str(restarts), program, *arguments]


@pytest.mark.parametrize(
    ("ending", "restarts", "starts", "code"),
    [
        ("os.kill(os.getpid(), 9) if n < 3 else None", 3, 3, 0),
        ("sys.exit(75 if n < 2 else 0)", 1, 2, 0),
        ("os.kill(os.getpid(), 9)", 2, 3, 128 + 9),
        ("sys.exit(75)", 1, 2, 75),
        ("sys.exit(1)", 3, 1, 1),
        ("sys.exit(2)", 3, 1, 2),
        ("sys.exit(76)", 3, 1, 76),
        ("sys.exit(0)", 3, 1, 0),
    ],
)
def test_killed_and_bereft_processes_are_started_again_and_failed_ones_are_not(
    tmp_path, ending, restarts, starts, code
):
    counter = tmp_path / "starts"
    done = subprocess.run(parent(restarts, COUNT + ending, str(counter)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert counter.stat().st_size == starts
    assert done.stderr.count("starting it again") == starts - 1


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# Its file is there from its start until SIGTERM comes, which no other end removes.
WAIT = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: (os.unlink(sys.argv[1]), sys.exit(0))); "
    "open(sys.argv[1], 'w'); time.sleep(60)"
)


def test_sigterm_is_passed_on_and_nothing_starts_again(tmp_path):
    running = tmp_path / "running"
    process = subprocess.Popen(parent(3, WAIT, str(running)), cwd=ROOT)
    wait_for(running.exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert not running.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_the_child_is_told_when_the_parent_is_killed(tmp_path):
    running = tmp_path / "running"
    process = subprocess.Popen(parent(3, WAIT, str(running)), cwd=ROOT)
    wait_for(running.exists)
    process.kill()
    process.wait()
    wait_for(lambda: not running.exists())
