"""A process that trains trials; `tfgpt.search.trial` runs in it. No TensorFlow.

The process is spawned, not forked, so that it works on Linux, macOS and Windows. It imports TensorFlow once and trains
trials for `LIFETIME` seconds; then a new process replaces it, because compiled programs are never freed in a process.
A process that dies takes only its trial with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tfgpt.common.errors import TfgptError
from tfgpt.common.process_memory import held_memory
from tfgpt.search.study import Study, TrialSpec
from tfgpt.training.config import StrategyConfig
from tfgpt.training.stop_signals import stop_signals

LIFETIME = 120.0  # seconds of training; compared with it an import of TensorFlow is short
MAX_SAVE_SECONDS = 120.0
INTERRUPTED_EXIT_CODE = 130
PREPARE = "prepare"
SPAWN = multiprocessing.get_context("spawn")


class TrialProcess:
    """The search's side of a process; `environment` selects the devices and threads of the process."""

    def __init__(self, study: Study, environment: dict[str, str]):
        self.study, self.environment = study, environment
        self.memory_limit = study.search.trial_memory_limit << 20
        # What earlier trials left in a process would count; and TensorFlow sets up several devices only once.
        measures_memory = bool(self.memory_limit) or study.search.search_objective == "peak_memory_bytes"
        searched = {field.name for field in dataclasses.fields(StrategyConfig)} & set(study.space.columns())
        config: StrategyConfig = study.settings["strategy"]
        gpus = environment.get("CUDA_VISIBLE_DEVICES", ",".join(known_gpus())).split(",")
        one = config.strategy == "one" or (config.strategy == "auto" and len(gpus) == 1)
        one_device = one and config.logical_cpus == 1 and not searched
        self.lifetime = LIFETIME if one_device and not measures_memory else 0.0
        self.process: Any = None
        self.reset()

    def reset(self) -> None:
        self.busy, self.excess_memory, self.trained_seconds = False, 0, 0.0
        self.stop_requested: float | None = None

    def start(self) -> None:
        """Starts the process if it is not running, and returns before TensorFlow is imported."""
        if self.process is not None and self.process.is_alive():
            return
        self.close()
        self.connection, remote = SPAWN.Pipe()
        self.process = SPAWN.Process(target=run_tasks, args=(self.study, remote, self.environment), name="trials")
        self.process.start()
        remote.close()

    def submit(self, task: TrialSpec | str) -> None:
        """Starts a trial, or the preparation of the data (`PREPARE`)."""
        self.start()
        self.busy, self.preparing, self.task_started = True, task == PREPARE, time.monotonic()
        self.send(task)

    def send(self, content: Any) -> None:
        with contextlib.suppress(OSError):  # `receive` notices that the process is gone.
            self.connection.send(content)

    def receive(self, timeout: float = 0.0) -> tuple[Any, ...] | None:
        """Returns the next message; waits for it at most `timeout` seconds.

        Returns:
            None; ("report", position, metrics), which must be answered; or ("result", result), after which the process
            is free. The status of a result is "completed", "stopped", "failed" (with an "error"), "killed" (with an
            "error": by a signal, the trial may succeed later) or "interrupted".
        """
        if self.stop_requested is not None and time.monotonic() > self.stop_requested + MAX_SAVE_SECONDS:
            self.process.kill()
        if self.memory_limit and not self.excess_memory and not self.preparing:
            memory = held_memory(self.process.pid)
            if memory > self.memory_limit:
                self.excess_memory = memory
                self.process.kill()
        try:
            if not connections.wait([self.connection], timeout):
                return None
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            message = "result", self.result_of_death(self.process.exitcode)
        if message[0] == "report":
            return message
        self.busy = False
        if message[0] == "error":
            error = TfgptError(message[2])
            error.exit_code = message[1]
            raise error
        self.trained_seconds += 0.0 if self.preparing else time.monotonic() - self.task_started
        if message[1]["status"] not in ("completed", "stopped") or self.trained_seconds > self.lifetime:
            self.close()
        return message

    def result_of_death(self, code: int) -> dict[str, Any]:
        if self.excess_memory:
            error = f"out of memory: {self.excess_memory >> 20} MiB, --trial_memory_limit={self.memory_limit >> 20}"
            return {"status": "failed", "error": error, "peak_memory_bytes": self.excess_memory}
        if code == INTERRUPTED_EXIT_CODE or self.stop_requested is not None:
            return {"status": "interrupted"}
        if code >= 0:
            return {"status": "failed", "error": f"ended with exit code {code}; log.txt has more"}
        name = signal.Signals(-code).name
        reason = " (as the kernel does when memory runs out)" if name == "SIGKILL" else ""
        return {"status": "killed", "error": f"killed by {name}{reason}"}

    def stop(self) -> None:
        """Makes the trial save and stop within `MAX_SAVE_SECONDS`; on Windows it ends at once."""
        if self.stop_requested is None:
            self.stop_requested = time.monotonic()
            self.process.terminate()

    def close(self) -> None:
        if self.process is None:
            return
        self.connection.close()  # An idle process ends then.
        if self.busy:
            self.stop()
        self.process.join(MAX_SAVE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process = None
        self.reset()


def known_gpus() -> list[str]:
    """Returns the GPUs that TensorFlow would see, without importing it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    driver = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(driver.iterdir())))] if driver.is_dir() else []


def run_tasks(study: Study, connection: Connection, environment: dict[str, str]) -> None:
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)
    os.environ.update(environment)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        from tfgpt.common.tf_logging import import_tensorflow

        import_tensorflow()
        from tfgpt.search.trial import prepare_data, run_trial

        while True:
            task = connection.recv()
            if task == PREPARE:
                prepare_data(study, connection)
            else:
                run_trial(study, task, connection)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)


def end_with_parent() -> None:
    search = multiprocessing.parent_process()
    if search is not None:
        search.join()
        signal.raise_signal(signal.SIGTERM)
