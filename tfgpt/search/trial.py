"""A trial: a training run that reports each validation and stops when the search says so.

It runs in a process of `tfgpt.search.trial_process`. The output of `train` is in TRIAL_DIR/log.txt, the result in
TRIAL_DIR/result.json. A killed trial continues from its checkpoint.
"""

from __future__ import annotations

import errno
import gc
import math
import os
import shutil
import statistics
import time
import traceback
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
from tfgpt.model.cost import count_parameters
from tfgpt.search.cached_run import VALIDATED, final_metrics, validations
from tfgpt.search.study import TRAIN, Study, TrialSpec, first_values
from tfgpt.training.checkpoints import Checkpoints
from tfgpt.training.metrics_writers import read_metrics
from tfgpt.training.objectives.base import get_objective
from tfgpt.training.run import train

POSITIONS = 1000  # a report's position in the training, in thousandths: batches of different size compare


def prepare_data(study: Study, connection: Connection) -> None:
    """Prepares the data with the first values of the space; the trials find them in the cache."""
    try:
        config = study.train_config(study.space.flags(first_values(study.space)), "0000")
        get_objective(config.objective.objective).prepare(config)
        connection.send(("result", {"status": "completed"}))
    except TfgptError as error:
        connection.send(("error", error.exit_code, str(error)))


def run_trial(study: Study, spec: TrialSpec, connection: Connection) -> None:
    """Trains a trial.

    The search receives ("report", position, metrics), which it answers with whether to stop, and at the end ("result",
    result), or ("error", exit code, message) for an error that is not the trial's.
    """
    directory = study.trial_dir(spec.trial_id)
    try:
        make_working_directory(directory, "run", "search_dir")
        # An earlier process of the trial may still be saving.
        with waiting_writer_lock(directory / ".trial.lock", directory), readable_write_errors(directory):
            with open(directory / "log.txt", "ab") as log:
                redirect_output(log.fileno())
            result = train_trial(study, spec, connection)
            if result["status"] != "interrupted":
                write_json(directory / "result.json", {"request": vars(spec), **result})
    except KeyboardInterrupt:
        result = {"status": "interrupted"}
    except TfgptError as error:
        connection.send(("error", error.exit_code, str(error)))
        return
    connection.send(("result", result))


def train_trial(study: Study, spec: TrialSpec, connection: Connection) -> dict[str, Any]:
    keras.backend.clear_session()
    gc.collect()
    forget_peak()
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
    directory = study.trial_dir(spec.trial_id)
    try:
        if spec.continues is not None and not (directory / "checkpoints").is_dir():
            copy_lower_rung(study.trial_dir(spec.continues), directory)
        config = study.train_config(spec.flags, spec.trial_id)
        reporter = TrialReporter(directory, spec, config.run.max_steps, connection)
        saved = Checkpoints(directory / "checkpoints", 1).steps()
        if saved and 0 < spec.stop_at_step < config.run.max_steps and saved[-1] >= spec.stop_at_step:
            reporter.stopped_by = "rung"
        else:
            train(config, TRAIN.flag_file(config.settings()), callbacks=(reporter,))
    except KeyboardInterrupt:
        return {"status": "interrupted"}
    except BaseException as error:
        if is_disk_full(error):
            raise RunError(str(error)) from error
        return failure(error)
    if reporter.disconnected or (reporter.stopped_by is None and not (directory / "model").is_dir()):
        return {"status": "interrupted"}
    rows = validations(directory, config.run.max_steps)
    result: dict[str, Any] = {"status": "stopped" if reporter.stopped_by == "median" else "completed"}
    result.update(final_metrics(rows, config))
    if not all(math.isfinite(result[name]) for name in VALIDATED if name in result):
        result.update(status="failed", error="diverged: the validation loss is not finite")
    speeds = [row["tokens_per_second"] for row in read_metrics(directory / "metrics.jsonl")
              if row.get("tokens_per_second")]  # fmt: skip
    if speeds:
        result["tokens_per_second"] = statistics.median(speeds)
    steps, tokens = rows[-1]["step"] if rows else 0, config.batch.batch_size * config.batch.sequence_length
    first = read_json(directory / "continues.json")["step"] if spec.continues is not None else 0
    counts = {"steps": steps, "tokens": steps * tokens, "tokens_trained": (steps - first) * tokens}
    return {**result, **counts, **reporter.totals()}


class TrialReporter(keras.callbacks.Callback):
    """Reports each validation to the search, and stops the run on its answer or at the end of the trial's rung.

    Attributes:
        stopped_by: "median" or "rung"; None if this callback did not stop the run.
        disconnected: whether the search is gone.
    """

    def __init__(self, directory: Path, spec: TrialSpec, max_steps: int, connection: Connection):
        super().__init__()
        self.spec, self.max_steps, self.connection = spec, max_steps, connection
        self.stopped_by: str | None = None
        self.disconnected = False
        self.clock, self.started = directory / "clock.json", time.monotonic()
        empty: dict[str, Any] = {"seconds": 0.0, "parameters": None, "peak_memory_bytes": 0}
        self.earlier = read_json(self.clock) if self.clock.is_file() else empty

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.earlier["parameters"] = count_parameters(self.model.decoder.config)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports a validation; `epoch` is the update."""
        write_json(self.clock, self.totals())
        metrics = {name: logs[name] for name in VALIDATED if logs and isinstance(logs.get(name), float)}
        if epoch < self.max_steps:
            try:
                self.connection.send(("report", round(POSITIONS * epoch / self.max_steps), metrics))
                if self.connection.recv():
                    self.stopped_by = "median"
            except (EOFError, OSError):
                self.disconnected = True
            if self.spec.stop_at_step and self.spec.stop_at_step <= epoch:
                self.stopped_by = "rung"
        if self.stopped_by or self.disconnected:
            self.model.stop_training = True

    def totals(self) -> dict[str, Any]:
        """Returns seconds, parameters and peak memory over all processes of the trial; clock.json keeps them."""
        return {
            "seconds": self.earlier["seconds"] + time.monotonic() - self.started,
            "parameters": self.earlier["parameters"],
            "peak_memory_bytes": max(self.earlier["peak_memory_bytes"], peak_device_memory()),
        }


def copy_lower_rung(source: Path, directory: Path) -> None:
    """Starts a trial with the checkpoints and metrics of the lower rung, by hard links if possible.

    The schedule of a trial is that of the full training on each rung, so that a trial that climbs all rungs is bit for
    bit the training without interruptions.
    """

    def link(original: str, copy: str) -> None:
        try:
            os.link(original, copy)
        except OSError:
            shutil.copyfile(original, copy)

    with atomic_directory(directory / "checkpoints") as temporary:
        shutil.copytree(source / "checkpoints", temporary, copy_function=link, dirs_exist_ok=True)
        shutil.copyfile(source / "metrics.jsonl", directory / "metrics.jsonl")
        steps = Checkpoints(temporary, 1).steps()
        write_json(directory / "continues.json", {"trial": source.name, "step": steps[-1] if steps else 0})


def failure(error: BaseException) -> dict[str, Any]:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        text = f"out of memory: {text[:200]}"
    elif isinstance(error, DivergedError):
        text = f"diverged: {text}"
    elif not isinstance(error, TfgptError):
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {text[:300]} (log.txt has more)"
    return {"status": "failed", "error": text, "peak_memory_bytes": peak_device_memory()}


def is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


def peak_device_memory() -> int:
    """Returns the peak of the first GPU's memory in bytes, without GPUs that of this process."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return peak_memory()
