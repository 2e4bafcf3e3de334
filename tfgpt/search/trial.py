"""One trial: an ordinary training run that reports each validation and may be told to stop.

It happens in a process of `tfgpt.search.trial_process`. What the run prints goes to TRIAL_DIR/log.txt, what came of it
to TRIAL_DIR/result.json. Killed at any moment, the same trial goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
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

from tfgpt.common.atomic_files import atomic_directory, read_json, readable_write_errors, write_json
from tfgpt.common.errors import DivergedError, RunError, TfgptError
from tfgpt.common.locks import waiting_writer_lock
from tfgpt.common.output_directories import make_working_directory
from tfgpt.common.process_memory import forget_peak, peak_memory
from tfgpt.common.standard_streams import redirect_output
from tfgpt.model import cost
from tfgpt.search.study import TRAIN, Study, TrialSpec, first_values
from tfgpt.training.checkpoints import Checkpoints
from tfgpt.training.config import StrategyConfig
from tfgpt.training.metrics_writers import read_metrics
from tfgpt.training.objectives.base import get_objective
from tfgpt.training.run import train
from tfgpt.training.train_config import TrainConfig

WHOLE = 1000  # a report's place in the training, in thousandths: batches of different size compare
START: dict[str, Any] = {"seconds": 0.0, "parameters": None, "peak_memory_bytes": 0}
MEASURED = ("validation_bits_per_byte", "validation_loss", "validation_accuracy")


def prepare_data(plan: Study) -> tuple:
    """Prepares the data of the first values; the trials find them in the cache.

    Returns:
        ("prepared",), or ("refused", exit code, line).
    """
    try:
        recipe = plan.recipe(plan.space.flags(first_values(plan.space)), "0000")
        get_objective(recipe.objective.objective).prepare(recipe)
    except TfgptError as error:
        return "refused", error.exit_code, str(error)
    return ("prepared",)


def run_trial(plan: Study, request: TrialSpec, connection: Connection) -> bool:
    """Trains one trial.

    Args:
        plan: the search.
        request: what to train.
        connection: to the search: ("report", place, numbers) is answered by "go on" or "stop"; ("done", result,
            whether this process may train another) or ("fatal", what is not the trial's fault) ends.

    Returns:
        Whether this process may train another.
    """
    directory = plan.trial_dir(request.trial_id)
    try:
        make_working_directory(directory, "run", "search_dir")
        # Another process of this trial may be saving still: that of a killed search, or of a worker thought lost.
        with waiting_writer_lock(directory / ".trial.lock", directory), readable_write_errors(directory):
            with open(directory / "log.txt", "ab") as log:
                redirect_output(log.fileno())
            result = attempted(plan, request, Reports(connection, request))
            if result["status"] != "interrupted":
                write_json(directory / "result.json", {"request": vars(request), **result})
    except KeyboardInterrupt:
        result = {"status": "interrupted"}
    except TfgptError as error:
        connection.send(("fatal", str(error)))
        return False
    may_go_on = result["status"] in ("completed", "stopped") and leaves_nothing_behind(plan)
    connection.send(("done", result, may_go_on))
    return may_go_on


def attempted(plan: Study, request: TrialSpec, reports: Reports) -> dict[str, Any]:
    """The result of the training, also of one that fails.

    Raises:
        RunError: it failed because the disk is full.
    """
    keras.backend.clear_session()
    gc.collect()
    forget_peak()
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
    try:
        return trained(plan, request, reports)
    except KeyboardInterrupt:
        return {"status": "interrupted"}
    except BaseException as error:
        if disk_is_full(error):
            raise RunError(str(error)) from error
        return failure(error)


def leaves_nothing_behind(plan: Study) -> bool:
    """Whether the next trial finds a process as a new one: several devices are set up once, and differently."""
    if {field.name for field in dataclasses.fields(StrategyConfig)} & set(plan.space.columns()):
        return False
    config: StrategyConfig = plan.settings["strategy"]
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return config.logical_cpus == 1 and (config.strategy == "one" or (config.strategy == "auto" and len(devices) == 1))


def trained(plan: Study, request: TrialSpec, reports: Reports) -> dict[str, Any]:
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
            "peak_memory_bytes": max(earlier["peak_memory_bytes"], peak()),
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
        "peak_memory_bytes": max(earlier["peak_memory_bytes"], peak()),
        "seconds": seconds,
        "parameters": reports.parameters,
    }


def rows_of(directory: Path, last_step: int) -> list[dict[str, Any]]:
    """The validations of a run up to a step, without that before the training."""
    rows = read_metrics(directory / "metrics.jsonl")
    return [row for row in rows if "validation_loss" in row and 0 < row["step"] <= last_step]


def outcome(rows: list[dict[str, Any]], recipe: TrainConfig) -> dict[str, Any]:
    """The numbers of the model that the run leaves: the best validation with --save_best, else the last."""
    finite = [row for row in rows if all(isinstance(row.get(name), float) for name in MEASURED)]
    if not finite:
        return dict.fromkeys(MEASURED, float("nan"))
    row = min(finite, key=lambda row: row["validation_loss"]) if recipe.run.save_best else rows[-1]
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

    def __init__(self, connection: Connection, request: TrialSpec):
        super().__init__()
        self.connection, self.request = connection, request
        self.stopped: str | None = None
        self.lost = False
        self.clock: Callable[[], Any] = lambda: None
        self.max_steps = 1
        self.parameters: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Before the first update."""
        self.parameters = cost.count_parameters(self.model.decoder.config)

    def again(self, rows: list[dict[str, Any]], recipe: TrainConfig) -> None:
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
    with atomic_directory(directory / "checkpoints") as temporary:
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
    elif isinstance(error, DivergedError):
        text = f"diverged: {text}"
    elif not isinstance(error, TfgptError):
        import traceback

        traceback.print_exception(error)
        text = f"{type(error).__name__}: {text[:300]} (log.txt has more)"
    return {"status": "failed", "error": text, "peak_memory_bytes": peak()}


def disk_is_full(error: BaseException | None) -> bool:
    """Whether the operating system refused to write for want of space."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


def peak() -> int:
    """The most bytes that this trial's process (with GPUs: the first GPU) held at once; 0 where nobody knows."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return peak_memory()
