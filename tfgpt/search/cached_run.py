"""Training runs with a cached result, and the metrics of a finished run. No TensorFlow before a run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.errors import DivergedError, UserError
from tfgpt.common.output_directories import make_working_directory
from tfgpt.model.cost import count_parameters
from tfgpt.search.study import TRAIN
from tfgpt.training.train_config import TrainConfig

STOPPED_EXIT_CODE = 76
VALIDATED = ("validation_bits_per_byte", "validation_loss", "validation_accuracy")


def run_once(config: TrainConfig) -> dict[str, Any] | None:
    """Trains in this process, or reads the result of the finished run. The output of `train` goes to RUN_DIR/log.txt.

    Returns `parameters`, `tokens`, `seconds` and the validation metrics of the model; None if a signal stopped the run.
    """
    path = config.run_dir / "result.json"
    if path.is_file():
        return read_json(path)
    from tfgpt.common.tf_logging import import_tensorflow

    import_tensorflow()
    import keras

    from tfgpt.model.checkpoints.huggingface import load_config
    from tfgpt.training.run import train

    config = with_stop_code(config)
    keras.backend.clear_session()
    make_working_directory(config.run_dir, "run", "run_dir")
    with open(config.run_dir / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        if train(config, TRAIN.flag_file(config.settings())) == STOPPED_EXIT_CODE:
            return None
    rows = validations(config.run_dir, config.run.max_steps)
    metrics = final_metrics(rows, config)
    if not math.isfinite(metrics["validation_loss"]):
        raise DivergedError(f"{config.run_dir}: diverged; lower --learning_rate")
    result = {
        "parameters": count_parameters(load_config(config.run_dir / "model")),
        "tokens": rows[-1]["step"] * config.batch.batch_size * config.batch.sequence_length,
        "seconds": read_json(config.run_dir / "model" / "training.json")["trained_seconds"],
        **metrics,
    }
    write_json(path, result)
    return result


def check_same_flags(flag: str, config: TrainConfig) -> None:
    """Refuses a run that was started with other flags; `flag` names the flag of its directory in the error."""
    path = config.run_dir / "flags.cfg"
    if not path.is_file():
        return
    before = path.read_text(encoding="utf-8").splitlines()
    now = TRAIN.flag_file(with_stop_code(config).settings()).splitlines()
    differing = [line for line in [*now, *before] if (line in now) != (line in before) and line.startswith("--")]
    if differing:
        problem = f"{config.run_dir} was started with other flags ({differing[0].split('=')[0]} differs)"
        raise UserError(f"--{flag}: {problem}; choose another directory")


def with_stop_code(config: TrainConfig) -> TrainConfig:
    """Returns the configuration without samples and with an exit code that tells a stop by a signal from the end."""
    run = dataclasses.replace(config.run, preempted_exit_code=STOPPED_EXIT_CODE, restarts=0)
    return dataclasses.replace(config, run=run, logging=dataclasses.replace(config.logging, sample_tokens=0))


def validations(run_dir: Path, last_step: int) -> list[dict[str, Any]]:
    """Returns the validations of a run up to a step, without the one before the training."""
    from tfgpt.training.metrics_writers import read_metrics  # It imports TensorFlow.

    rows = read_metrics(run_dir / "metrics.jsonl")
    return [row for row in rows if "validation_loss" in row and 0 < row["step"] <= last_step]


def final_metrics(rows: list[dict[str, Any]], config: TrainConfig) -> dict[str, float]:
    """Returns the validation metrics of the model that a run leaves: of the best step with --save_best, else the last.

    All are NaN if the last validation loss is not finite; metrics.jsonl holds null then.
    """
    finite = [row for row in rows if isinstance(row["validation_loss"], float)]
    if not finite or rows[-1] is not finite[-1]:
        return dict.fromkeys(VALIDATED, math.nan)
    row = min(finite, key=lambda row: row["validation_loss"]) if config.run.save_best else rows[-1]
    return {name: row[name] if isinstance(row[name], float) else math.nan for name in VALIDATED if name in row}
