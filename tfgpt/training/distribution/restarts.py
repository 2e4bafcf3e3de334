"""Restarts a training process that dies, from a small parent process. No TensorFlow."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from types import FrameType

from tfgpt.training.stop_signals import stop_signals

# Exit code of `tfgpt.training.distribution.startup_barrier.WorkerLost`.
WORKER_LOST = 75
PAUSE = 2.0  # seconds before a new start


def run_with_restarts(command: list[str], restarts: int) -> int:
    """Runs a command, again at most `restarts` times when it was killed or lost another worker of its cluster.

    On a cluster every worker has such a parent: when one worker is killed, the others end with `WORKER_LOST`, and all
    start again. Stop signals are passed on, and end the restarts. When this process itself is killed, the kernel
    sends the child SIGTERM (Linux), so that it saves and stops.

    Returns the last exit code, or 128 + the signal's number when the command was killed too often.
    """
    parent = Parent()
    for left in range(restarts, -1, -1):
        code = parent.run(command)
        if parent.stopping or (code >= 0 and code != WORKER_LOST):
            break
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "lost another worker"
        if not left:
            print(f"tfgpt.train: the process {how}; --restarts={restarts} are used up", file=sys.stderr, flush=True)
            break
        which = f"restart {restarts - left + 1} of {restarts}"
        print(f"tfgpt.train: the process {how}; starting it again ({which})", file=sys.stderr, flush=True)
        time.sleep(PAUSE)
        if parent.stopping:
            break
    return code if code >= 0 else 128 - code


class Parent:
    """Starts a child, passes signals on to it and waits for it."""

    def __init__(self) -> None:
        self.stopping = False
        self.pending: int | None = None
        self.child: subprocess.Popen | None = None
        for number in stop_signals():
            signal.signal(number, self.stop)

    def run(self, command: list[str]) -> int:
        """Returns the child's exit code, negative for a signal."""
        # Ask the kernel for a SIGTERM when this parent dies (prctl(2), PR_SET_PDEATHSIG).
        self.child = subprocess.Popen(
            command,
            preexec_fn=(lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM)) if sys.platform == "linux" else None,
        )
        if self.pending is not None:  # The signal came before `self.child` was set.
            self.child.send_signal(self.pending)
        return self.child.wait()

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        if number == signal.SIGINT:
            return  # The terminal sends Ctrl-C to the child as well.
        self.pending = number
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)
