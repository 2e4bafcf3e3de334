"""One trial: an ordinary training run in a process of its own; it reports each validation and may be told to stop.

The process is a fork of the launcher, which has imported TensorFlow but not started it. What the run prints goes to
TRIAL_DIR/log.txt, what came of it to TRIAL_DIR/result.json. Killed at any moment, the same trial goes on from its
checkpoint; finished, it only gives its result again.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfgpt.common.errors import TfgptError, UserError
from tfgpt.common.files import clear_write_errors, directory_written_beside, read_json, write_json
from tfgpt.common.outputs import make_working_directory
from tfgpt.common.quiet import write_to
from tfgpt.model import presets
from tfgpt.search.plan import TRAIN, Plan, TrialRequest
from tfgpt.training.checkpoints import Checkpoints
from tfgpt.training.recipe import Recipe
from tfgpt.training.run import train
from tfgpt.training.watching import read_metrics

WHOLE = 1000  # a report's place in the training, in thousandths: batches of different size compare
START: dict[str, Any] = {"seconds": 0.0, "parameters": None, "peak_memory_bytes": 0}
MEASURED = ("validation_bits_per_byte", "validation_loss", "validation_accuracy")


def run_trial(plan: Plan, request: TrialRequest, connection: Connection, devices: dict[str, str]) -> None:
    """The process's whole life.

    Args:
        plan: the search.
        request: what to train.
        connection: to the worker: ("report", place, numbers) is answered by "go on" or "stop"; ("done", result) ends.
        devices: environment variables that say which devices and how many threads are the trial's.
    """
    os.environ.update(devices)
    directory = plan.trial_dir(request.trial_id)
    # Fatal: not the trial's fault, so that the search stops and nothing is recorded.
    fatal, result = "", None
    try:
        with clear_write_errors(directory):
            make_working_directory(directory, "run", "search_dir")
            lock = open(directory / ".lock", "ab")  # noqa: SIM115 (held as long as the process lives)
            # Another process of this trial may be saving still: that of a killed search, or of a worker thought lost.
            fcntl.flock(lock, fcntl.LOCK_EX)
            log = os.open(directory / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        write_to(log)
        result = trained(plan, request, Reports(connection, request))
    except KeyboardInterrupt:
        result = {"status": "interrupted"}
    except BaseException as error:
        if disk_is_full(error):
            fatal = str(error)
        else:
            result = failure(error)
    if fatal or result is None:
        connection.send(("fatal", fatal or "the trial ended without a result"))
        return
    if result["status"] != "interrupted":
        try:
            write_json(directory / "result.json", {"request": vars(request), **result})
        except TfgptError as error:
            connection.send(("fatal", str(error)))
            return
    connection.send(("done", result))


def trained(plan: Plan, request: TrialRequest, reports: Reports) -> dict[str, Any]:
    """Trains, or goes on training, and returns the result."""
    directory = plan.trial_dir(request.trial_id)
    recipe = plan.recipe(request.flags, request.trial_id)
    if request.continues is not None and not (directory / "checkpoints").is_dir():
        take_over(plan.trial_dir(request.continues), directory)
    began = time.monotonic()
    earlier = read_json(directory / "clock.json") if (directory / "clock.json").is_file() else START
    reports.parameters = earlier["parameters"]
    reports.clock = lambda: write_json(
        directory / "clock.json",
        {
            "seconds": earlier["seconds"] + time.monotonic() - began,
            "parameters": reports.parameters,
            "peak_memory_bytes": max(earlier["peak_memory_bytes"], peak_memory()),
        },
    )
    saved = Checkpoints(directory / "checkpoints", 1).steps()
    reports.again(rows_of(directory, saved[-1] if saved else 0), recipe)
    if reports.stopped is None:
        train(recipe, TRAIN.flag_file(recipe.settings()), callbacks=(reports,))
    if reports.lost:
        return {"status": "interrupted"}
    rows = rows_of(directory, recipe.run.max_steps)
    last = rows[-1]["step"] if rows else 0
    finished = (directory / "model").is_dir()
    if reports.stopped is None and not finished:
        return {"status": "interrupted"}
    result = outcome(rows, recipe)
    seconds = earlier["seconds"] + time.monotonic() - began
    status = {"median": "stopped", "rung": "completed", None: "completed"}[reports.stopped]
    if not all(math.isfinite(result[name]) for name in MEASURED if name in result):
        status, result["error"] = "failed", "diverged: the held-out loss is not a number"
    inherited = take_over_step(directory)
    tokens = recipe.batch.batch_size * recipe.batch.sequence_length
    return {
        "status": status,
        **result,
        "steps": last,
        "tokens": last * tokens,
        "tokens_trained": (last - inherited) * tokens,
        "peak_memory_bytes": max(earlier["peak_memory_bytes"], peak_memory()),
        "seconds": seconds,
        "parameters": reports.parameters,
    }


def rows_of(directory: Path, last_step: int) -> list[dict[str, Any]]:
    """The validations of a run up to a step, without that before the training."""
    rows = read_metrics(directory / "metrics.jsonl")
    return [row for row in rows if "validation_loss" in row and 0 < row["step"] <= last_step]


def outcome(rows: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """The numbers of the model that the run leaves: the best validation with --keep_best, else the last."""
    finite = [row for row in rows if all(isinstance(row.get(name), float) for name in MEASURED)]
    if not finite:
        return dict.fromkeys(MEASURED, float("nan"))
    row = min(finite, key=lambda row: row["validation_loss"]) if recipe.run.keep_best else rows[-1]
    numbers: dict[str, Any] = {
        name: row[name] if isinstance(row.get(name), float) else float("nan") for name in MEASURED
    }
    if rows[-1] is not finite[-1]:
        numbers = dict.fromkeys(MEASURED, float("nan"))
    speeds = [row["tokens_per_second"] for row in read_metrics(recipe.run_dir / "metrics.jsonl")
              if row.get("tokens_per_second")]  # fmt: skip
    if speeds:
        numbers["tokens_per_second"] = statistics.median(speeds)
    return numbers


class Reports(keras.callbacks.Callback):
    """Tells the worker each validation and stops the run when told to, or where the trial's rung ends.

    Attributes:
        stopped: "median" or "rung"; None: not stopped by this.
        lost: whether the worker is gone.
        clock: called at each report.
        parameters: of the model.
    """

    def __init__(self, connection: Connection, request: TrialRequest):
        super().__init__()
        self.connection, self.request = connection, request
        self.stopped: str | None = None
        self.lost = False
        self.clock: Callable[[], Any] = lambda: None
        self.max_steps = 1
        self.parameters: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Before the first update."""
        self.parameters = presets.count_parameters(self.model.decoder.config)

    def again(self, rows: list[dict[str, Any]], recipe: Recipe) -> None:
        """Repeats what was reported before the trial was interrupted, since the answer may have been lost."""
        self.max_steps = recipe.run.max_steps
        for row in rows:
            if self.stopped is None:
                self.report(row["step"], row)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """After a validation; `epoch` is the step."""
        self.clock()
        self.report(epoch, logs or {})
        if self.stopped or self.lost:
            self.model.stop_training = True

    def report(self, step: int, numbers: dict[str, Any]) -> None:
        """Tells the worker and takes down its answer."""
        mine = {name: numbers[name] for name in MEASURED if isinstance(numbers.get(name), float)}
        if step < self.max_steps:
            try:
                self.connection.send(("report", round(WHOLE * step / self.max_steps), mine))
                if self.connection.recv() == "stop":
                    self.stopped = "median"
            except (EOFError, OSError):
                self.lost = True
        if self.request.stop_at_step and self.request.stop_at_step <= step < self.max_steps:
            self.stopped = "rung"


def take_over(source: Path, directory: Path) -> None:
    """Begins a trial with the checkpoints and metrics of the lower rung's: hard links, which cost no space.

    The schedule of a trial is that of the whole training from the first rung on, so that a trial which climbs all
    rungs is bit for bit the training that was never interrupted.
    """
    with directory_written_beside(directory / "checkpoints") as temporary:
        for path in sorted((source / "checkpoints").rglob("*")):
            target = temporary / path.relative_to(source / "checkpoints")
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                try:
                    os.link(path, target)
                except OSError:
                    shutil.copyfile(path, target)
        shutil.copyfile(source / "metrics.jsonl", directory / "metrics.jsonl")
        steps = Checkpoints(temporary, 1).steps()
        write_json(directory / "continues.json", {"trial": source.name, "step": steps[-1] if steps else 0})


def take_over_step(directory: Path) -> int:
    """The step at which the trial went on from another."""
    path = directory / "continues.json"
    return read_json(path)["step"] if path.is_file() else 0


def failure(error: BaseException) -> dict[str, Any]:
    """What an exception says of the trial."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        text = f"out of memory: {text[:200]}"
    elif isinstance(error, UserError):
        pass
    elif isinstance(error, TfgptError):
        text = f"diverged: {text}" if "not finite" in text else text
    else:
        import traceback

        traceback.print_exception(error)
        text = f"{type(error).__name__}: {text[:300]} (log.txt has more)"
    return {"status": "failed", "error": text, "peak_memory_bytes": peak_memory()}


def disk_is_full(error: BaseException | None) -> bool:
    """Whether the operating system refused to write for want of space."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


def peak_memory() -> int:
    """The most bytes that this process (with GPUs: the first GPU) held at once; 0 where the system does not say."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    # VmHWM, not getrusage: the latter is inherited from the launcher.
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
