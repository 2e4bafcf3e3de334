"""A process that trains trials, as the search sees it; `tfgpt.search.trial` is what happens inside. No TensorFlow.

It is spawned, not forked: nothing of the search's own process is in it, and it works the same on Linux, macOS and
Windows. It imports TensorFlow once (seconds) and trains one trial after the other until these have taken `LIFE`; then a
new one takes its place, because compiled programs are never freed in a process. A process that dies takes only its
trial with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from typing import Any

from tfgpt.common.errors import RunError, TfgptError
from tfgpt.common.process_memory import held_memory
from tfgpt.search.study import Study, TrialSpec
from tfgpt.training.stop_signals import stop_signals

LIFE = 120.0  # seconds of training; beside them, importing TensorFlow for the next process is little
LONGEST_SAVE = 120.0  # seconds
INTERRUPTED = 130  # exit code
PREPARE = "prepare"
SPAWN = multiprocessing.get_context("spawn")


class TrialProcess:
    """The search's side.

    Args:
        plan: the search.
        devices: environment variables that say which devices and how many threads are the trials'.
    """

    def __init__(self, plan: Study, devices: dict[str, str]):
        self.plan, self.devices = plan, devices
        self.memory_limit = plan.search.trial_memory_limit << 20
        # What earlier trials have left in a process would count.
        self.one_trial_each = bool(self.memory_limit) or plan.search.search_objective == "peak_memory_bytes"
        self.process: Any = None
        self.asked_to_stop: float | None = None
        self.working = False
        self.trained_seconds = 0.0

    def start(self) -> None:
        """Starts the process, unless it is there. Returns at once: importing takes seconds."""
        if self.process is not None and self.process.is_alive():
            return
        self.close()
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=live, args=(self.plan, theirs, self.devices), name="trials")
        self.process.start()
        theirs.close()

    def prepare(self, tick: Callable[[], None]) -> None:
        """Reads the text before the first trial does: what is wrong with it is wrong for all of them.

        Args:
            tick: called about twice a second.

        Raises:
            TfgptError: the text or a flag is at fault.
        """
        kind, *rest = self.ask(PREPARE, lambda *_: "", tick)
        if kind == "refused":
            exit_code, text = rest
            error = TfgptError(text)
            error.exit_code = exit_code
            raise error
        if kind == "died" and rest[0] != INTERRUPTED and self.asked_to_stop is None:
            raise RunError(f"the process that prepares the data {ending(rest[0])}")

    def run(
        self, request: TrialSpec, report: Callable[[int, dict[str, float]], str], tick: Callable[[], None]
    ) -> dict[str, Any]:
        """Trains and waits.

        Args:
            request: what to train.
            report: called with place and numbers at each validation; answers "go on" or "stop".
            tick: called about twice a second.

        Returns:
            The trial's result; its "status" is "completed", "stopped", "failed" (with "error"), "killed" (with
            "error": by a signal, and it may go well another time) or "interrupted".

        Raises:
            RunError: something that is not the trial's fault, such as a full disk.
        """
        began, too_much = time.monotonic(), 0

        def watch() -> None:
            nonlocal too_much
            tick()
            if self.memory_limit and not too_much:
                held = held_memory(self.process.pid)
                if held > self.memory_limit:
                    too_much = held
                    self.process.kill()

        kind, *rest = self.ask(request, report, watch)
        self.trained_seconds += time.monotonic() - began
        if too_much:
            error = f"out of memory: {too_much >> 20} MiB, --trial_memory_limit={self.memory_limit >> 20}"
            return {"status": "failed", "error": error, "peak_memory_bytes": too_much}
        if kind == "fatal":
            raise RunError(rest[0])
        if kind == "died":
            (code,) = rest
            if code == INTERRUPTED:
                return {"status": "interrupted"}
            status = "killed" if code < 0 else "failed"
            return {"status": status, "error": ending(code)}
        result, may_go_on = rest
        if not may_go_on or self.one_trial_each or self.trained_seconds > LIFE:
            self.close()
        return result

    def ask(self, order: Any, report: Callable[[int, dict[str, float]], str], tick: Callable[[], None]) -> tuple:
        """Gives an order and waits for what comes of it: ("died", exit code) when the process is gone."""
        self.start()
        self.working = True
        message = self.exchange(order)
        while message is None or message[0] == "report":
            message = self.exchange(None if message is None else report(*message[1:]))
            tick()
            if self.asked_to_stop is not None and time.monotonic() > self.asked_to_stop + LONGEST_SAVE:
                self.process.kill()
        self.working = False
        return message

    def exchange(self, content: Any) -> tuple | None:
        """Sends something, unless it is None, and returns what comes within half a second."""
        try:
            if content is not None:
                self.connection.send(content)
            return self.connection.recv() if connections.wait([self.connection], timeout=0.5) else None
        except (EOFError, OSError):
            self.process.join()
            return "died", self.process.exitcode

    def stop(self) -> None:
        """Asks the trial to save and stop; who has not within LONGEST_SAVE is killed. On Windows it ends at once."""
        if self.asked_to_stop is None:
            self.asked_to_stop = time.monotonic()
            self.process.terminate()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self.process is None:
            return
        # One that waits for an order ends by itself.
        self.connection.close()
        if self.working:
            self.stop()
        self.process.join(LONGEST_SAVE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process, self.asked_to_stop, self.working, self.trained_seconds = None, None, False, 0.0


def ending(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}; log.txt has more"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (as the kernel does when memory runs out)" if name == "SIGKILL" else "")


def live(plan: Study, connection: Connection, devices: dict[str, str]) -> None:
    """The life of the process: one order after the other, until the search says no more or is gone."""
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)
    os.environ.update(devices)
    threading.Thread(target=end_with_the_search, daemon=True).start()
    try:
        from tfgpt.common.tf_logging import import_tensorflow

        import_tensorflow()
        from tfgpt.search.trial import prepare_data, run_trial

        may_go_on = True
        while may_go_on:
            order = connection.recv()
            if order == PREPARE:
                connection.send(prepare_data(plan))
            else:
                may_go_on = run_trial(plan, order, connection)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)


def end_with_the_search() -> None:
    """When the search's process dies, the trial saves and stops, as after SIGTERM."""
    search = multiprocessing.parent_process()
    if search is not None:
        search.join()
        signal.raise_signal(signal.SIGTERM)
