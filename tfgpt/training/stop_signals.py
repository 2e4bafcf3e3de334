"""Turns Ctrl-C and other signals into a request to stop after the current call, instead of an exception."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from types import FrameType

# A second SIGTERM within this time is a duplicate: a scheduler signals every process, and --restarts passes it on too.
DUPLICATE_SECONDS = 5.0

# SIGHUP: the terminal or ssh connection is gone. SIGUSR1: schedulers send it before the end (SLURM's --signal=USR1@90).
# They may come several times and never end a process at once. Windows has neither.
GENTLE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))


def stop_signals() -> tuple[int, ...]:
    """Returns the signals that ask a training to stop, without those that are ignored (SIGHUP under `nohup`)."""
    return (signal.SIGINT, signal.SIGTERM, *(one for one in GENTLE if signal.getsignal(one) is not signal.SIG_IGN))


class StopSignals:
    """Context in which a stop signal sets `requested`; a second SIGINT or SIGTERM ends the process at once.

    `requested` is the signal's name, or None; `requested_at` is the time of the request, by the monotonic clock.

    Example:

    >>> with StopSignals() as signals:
    ...     signals.requested is None
    True
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.requested_at = 0.0
        self.previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        # Python delivers signals to the main thread only; in other threads (a tuner's worker) nothing is caught.
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.handle) for number in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGHUP":
            # Redirect output from the terminal that is gone, where every write fails, to /dev/null.
            devnull = os.open(os.devnull, os.O_WRONLY)
            for descriptor in (1, 2):
                state = os.fstat(descriptor)  # `isatty` is false for a terminal that is gone.
                if stat.S_ISCHR(state.st_mode) and state.st_rdev != os.fstat(devnull).st_rdev:
                    os.dup2(devnull, descriptor)
            os.close(devnull)
        if self.requested:
            recent = time.monotonic() - self.requested_at < DUPLICATE_SECONDS
            if number in GENTLE or (number == signal.SIGTERM and recent):
                return
            print(f"\n{name} again: ending at once; the last checkpoint stands", file=sys.stderr, flush=True)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested, self.requested_at = name, time.monotonic()
        again = "" if number in GENTLE else "; again to end at once"
        print(f"\n{name}: stopping after this step{again}", file=sys.stderr, flush=True)
