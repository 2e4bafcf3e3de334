"""Ctrl-C and other signals as a wish to stop at the next whole step, instead of an exception in the middle of one."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from types import FrameType

# SIGTERM comes twice at once where a scheduler signals every process and the parent of --restarts passes it on too.
SAME_WISH = 5.0  # seconds

# The terminal or ssh connection went away; what schedulers are asked to send some time before the end (SLURM's
# --signal=USR1@90). They may come several times and never end a process at once. Windows has neither.
GENTLE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))


def stop_signals() -> tuple[int, ...]:
    """The signals that ask a training to stop; SIGHUP only where `nohup` has not had it ignored."""
    return (signal.SIGINT, signal.SIGTERM, *(one for one in GENTLE if signal.getsignal(one) is not signal.SIG_IGN))


def leave_terminal() -> None:
    """Writes nowhere what would go to a terminal that is gone, where every write is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for place in (1, 2):
        state = os.fstat(place)  # `isatty` says no of a terminal that is gone.
        if stat.S_ISCHR(state.st_mode) and state.st_rdev != os.fstat(nowhere).st_rdev:
            os.dup2(nowhere, place)
    os.close(nowhere)


class StopSignals:
    """While the block runs, `stop_signals` set `requested`; a second SIGINT or SIGTERM ends the process at once.

    Attributes:
        requested: the signal's name, or None.
        requested_at: when, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.requested_at = 0.0
        self.before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        # Python delivers signals to the main thread alone; elsewhere (a tuner's worker thread) nothing is caught.
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self.before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        name = signal.Signals(number).name
        if name == "SIGHUP":
            leave_terminal()
        if self.requested and number in GENTLE:
            return
        if self.requested and number == signal.SIGTERM and time.monotonic() - self.requested_at < SAME_WISH:
            return
        if self.requested:
            print(f"\n{name} again: ending at once; the last checkpoint stands", file=sys.stderr, flush=True)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested, self.requested_at = name, time.monotonic()
        again = "" if number in GENTLE else "; again to end at once"
        print(f"\n{name}: stopping after this step{again}", file=sys.stderr, flush=True)
