"""Ctrl-C and SIGTERM as a wish to stop at the next whole step, instead of an exception in the middle of one."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType

# SIGTERM comes twice at once where a scheduler signals every process and the parent of --restarts passes it on too.
SAME_WISH = 5.0  # seconds


class StopSignals:
    """While the block runs, SIGINT and SIGTERM set `requested`; a second one ends the process at once.

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
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        name = signal.Signals(number).name
        if self.requested and number == signal.SIGTERM and time.monotonic() - self.requested_at < SAME_WISH:
            return
        if self.requested:
            print(f"\n{name} again: ending at once; the last checkpoint stands", file=sys.stderr, flush=True)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested, self.requested_at = name, time.monotonic()
        print(f"\n{name}: stopping after this step; again to end at once", file=sys.stderr, flush=True)
