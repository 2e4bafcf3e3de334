"""Starting a training process again when it dies: a small parent process that does nothing else. No TensorFlow."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from types import FrameType

from tfgpt.training.stop_signals import stop_signals

# What a process ends with that lost another worker, see `tfgpt.training.distribution.startup_barrier.WorkerLost`.
WORKER_LOST = 75
PAUSE = 2.0  # seconds before a new start


def run_with_restarts(command: list[str], restarts: int) -> int:
    """Runs the command, again when it was killed or lost another worker of its cluster, at most `restarts` times more.

    On a cluster every worker has such a parent: when one is killed, the others end with `WORKER_LOST`, and all start
    again and meet. SIGTERM and its kin are passed on, and then nothing is started again. Should this process be killed
    itself, the child gets SIGTERM from the kernel (Linux), saves and stops.

    Returns:
        The last exit code; 128 + the signal's number when it was killed too often.
    """
    parent = Parent()
    for left in range(restarts, -1, -1):
        code = parent.run(command)
        if parent.stopping or (code >= 0 and code != WORKER_LOST):
            return code if code >= 0 else 128 - code
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "lost another worker"
        if left:
            which = f"restart {restarts - left + 1} of {restarts}"
            print(f"tfgpt.train: the process {how}; starting it again ({which})", file=sys.stderr, flush=True)
            time.sleep(PAUSE)
            if parent.stopping:
                return 128 - code if code < 0 else code
    print(f"tfgpt.train: the process {how}; --restarts={restarts} are used up", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


class Parent:
    """Starts a child, passes signals on and waits.

    Attributes:
        stopping: whether a signal asked to stop.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.wish: int | None = None
        self.child: subprocess.Popen | None = None
        for number in stop_signals():
            signal.signal(number, self.stop)

    def run(self, command: list[str]) -> int:
        """The child's exit code, negative for a signal."""
        self.child = subprocess.Popen(command, preexec_fn=die_with_parent if sys.platform == "linux" else None)
        if self.wish is not None:  # It came before the child had a name here.
            self.child.send_signal(self.wish)
        return self.child.wait()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The handler. The terminal gives Ctrl-C to the child as well; others may come to this process only."""
        self.stopping = True
        if number == signal.SIGINT:
            return
        self.wish = number
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)


def die_with_parent() -> None:
    """Asks the kernel for a SIGTERM when the parent dies (prctl(2), PR_SET_PDEATHSIG); Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
