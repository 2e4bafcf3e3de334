"""A training in this process that is done once: killed, it goes on; finished, its numbers are read from result.json."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.errors import DivergedError, UserError
from tfgpt.common.output_directories import make_working_directory
from tfgpt.model.cost import count_parameters
from tfgpt.search.study import TRAIN
from tfgpt.training.train_config import TrainConfig

STOPPED = 76
MEASURED = ("validation_loss", "validation_bits_per_byte", "validation_accuracy")


def check_same_flags(flag: str, recipe: TrainConfig) -> None:
    """Refuses a run that was begun with other flags.

    Raises:
        UserError: names `flag`, which says where runs are, and the first flag that differs.
    """
    path = recipe.run_dir / "flags.cfg"
    if not path.is_file():
        return
    then, now = path.read_text(encoding="utf-8").splitlines(), TRAIN.flag_file(quiet(recipe).settings()).splitlines()
    differing = [line for line in [*now, *then] if (line in now) != (line in then) and line.startswith("--")]
    if differing:
        problem = f"{recipe.run_dir} was begun with other flags ({differing[0].split('=')[0]} differs)"
        raise UserError(f"--{flag}: {problem}; choose another directory")


def quiet(recipe: TrainConfig) -> TrainConfig:
    """The recipe without samples, whose stop by a signal can be told from its end."""
    run = dataclasses.replace(recipe.run, preempted_exit_code=STOPPED, restarts=0)
    return dataclasses.replace(recipe, run=run, logging=dataclasses.replace(recipe.logging, sample_tokens=0))


def finished_run(recipe: TrainConfig) -> dict[str, Any] | None:
    """Trains, unless that is done; what `train` prints goes to RUN_DIR/log.txt.

    Returns:
        `parameters`, `tokens`, `seconds` and the validation's numbers of the model that the run left; None when a
        signal stopped it.

    Raises:
        UserError, RunError: as `train`; DivergedError also when only the held-out loss is not finite.
    """
    path = recipe.run_dir / "result.json"
    if path.is_file():
        return read_json(path)
    from tfgpt.common.tf_logging import import_tensorflow

    import_tensorflow()
    import keras

    from tfgpt.model.checkpoints.huggingface import load_config
    from tfgpt.training.metrics_writers import read_metrics
    from tfgpt.training.run import train

    recipe = quiet(recipe)
    keras.backend.clear_session()
    make_working_directory(recipe.run_dir, "run", "run_dir")
    with open(recipe.run_dir / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        if train(recipe, TRAIN.flag_file(recipe.settings())) == STOPPED:
            return None
    rows = [row for row in read_metrics(recipe.run_dir / "metrics.jsonl") if row.get("validation_loss") and row["step"]]
    finite = [row for row in rows if math.isfinite(row["validation_loss"])]
    if not rows or rows[-1] not in finite:
        raise DivergedError(f"{recipe.run_dir}: diverged; lower --learning_rate")
    row = min(finite, key=lambda row: row["validation_loss"]) if recipe.run.save_best else rows[-1]
    result = {
        "parameters": count_parameters(load_config(recipe.run_dir / "model")),
        "tokens": rows[-1]["step"] * recipe.batch.batch_size * recipe.batch.sequence_length,
        "seconds": read_json(recipe.run_dir / "model" / "training.json")["trained_seconds"],
        **{name: row[name] for name in MEASURED if name in row},
    }
    write_json(path, result)
    return result
