"""What a search has found so far: trials.csv, one row a trial, and best.cfg, the best one's flags. No TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from tfgpt.common.atomic_files import read_json, write_csv, write_text
from tfgpt.common.errors import UserError
from tfgpt.search.config import OBJECTIVES
from tfgpt.search.study import TRAIN, Study, TrialSpec

STATUSES = {"RUNNING": "running", "INVALID": "waiting", "FAILED": "failed", "COMPLETED": "completed"}
NUMBERS = (
    "validation_bits_per_byte", "validation_loss", "validation_accuracy", "tokens", "tokens_per_second",
    "peak_memory_bytes", "seconds", "parameters",
)  # fmt: skip
FIRST = ("trial_id", "status", "rung", "bracket", "continues")


@dataclasses.dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        trial_id: "0007".
        status: "running", "waiting" (killed, to be tried once more), "completed", "stopped" (by the median rule) or
            "failed".
        rung, bracket: Hyperband's; None otherwise.
        continues: the trial of the lower rung.
        flags: the flags that are searched; None for one that does not count in this trial.
        objective: the number that the search minimizes or maximizes.
        (numbers): what was measured; `tokens` is all that the model has seen, on lower rungs too; `seconds` is wall
            time of this trial's processes.
        error: why it failed.
        progress: the part of the whole training that it has done, when it is over.
    """

    trial_id: str
    status: str
    rung: int | None
    bracket: int | None
    continues: str | None
    flags: dict[str, Any]
    objective: float | None
    validation_bits_per_byte: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    tokens: int = 0
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    error: str = ""
    progress: float = 0.0

    @classmethod
    def of(cls, plan: Study, trial: Any, result: Mapping[str, Any]) -> Row:
        """The row of one of KerasTuner's trials, with what its result.json says."""
        request = request_of(plan, trial)
        if trial.status not in ("COMPLETED", "FAILED", "INVALID"):
            result = {}
        status = STATUSES[trial.status]
        if status == "completed":
            status = result.get("status", status)
        values = trial.hyperparameters.values
        numbers: dict[str, Any] = {name: result.get(name) for name in NUMBERS if result.get(name) is not None}
        objective = result.get(plan.search.search_objective) if status in ("completed", "stopped") else None
        return cls(
            trial_id=trial.trial_id,
            status=status,
            rung=values.get("tuner/round"),
            bracket=values.get("tuner/bracket"),
            continues=request.continues,
            flags={name: request.flags.get(name) for name in plan.space.columns()},
            objective=objective,
            error=result.get("error", "") if status in ("failed", "waiting") else "",
            progress=progress(plan, request, result["tokens"]) if status in ("completed", "stopped") else 0.0,
            **numbers,
        )

    def values_in_words(self) -> str:
        """`learning_rate 0.0123, batch_size 8, rung 1 (goes on from 0003)`."""
        words = [f"{name} {in_words(name, value)}" for name, value in self.flags.items() if value is not None]
        if self.rung is not None:
            words.append(f"bracket {self.bracket} rung {self.rung}")
        if self.continues:
            words.append(f"from the checkpoint of {self.continues}")
        return ", ".join(words)

    def cells(self) -> dict[str, Any]:
        """The row of trials.csv: empty for what is not known."""
        cells: dict[str, Any] = {name: getattr(self, name) for name in FIRST}
        cells.update({name: list(value) if isinstance(value, tuple) else value for name, value in self.flags.items()})
        cells.update({name: getattr(self, name) for name in ("objective", *NUMBERS, "error")})
        cells = {name: json.dumps(value) if isinstance(value, (list, bool)) else value for name, value in cells.items()}
        return {name: "" if value is None else value for name, value in cells.items()}


def request_of(plan: Study, trial: Any) -> TrialSpec:
    """What a worker trains for one of KerasTuner's trials.

    Hyperband's three values of its own say for how many of its epochs, and from which trial's end.
    """
    values = trial.hyperparameters.values
    flags = plan.space.flags(values)
    if "tuner/epochs" not in values:
        return TrialSpec(trial.trial_id, flags)
    try:
        steps = plan.recipe(flags, trial.trial_id).run.max_steps
    except UserError:  # flags that do not go together: the trial itself says so
        steps = plan.search.hyperband_epochs
    stop_at_step = values["tuner/epochs"] * (steps // plan.search.hyperband_epochs)
    return TrialSpec(trial.trial_id, flags, stop_at_step, values.get("tuner/trial_id"))


def read_result(plan: Study, trial_id: str) -> dict[str, Any]:
    """A trial's result.json, or nothing."""
    path = plan.trial_dir(trial_id) / "result.json"
    if not path.is_file():
        return {}
    result = read_json(path)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in result.items()}


def write_table(plan: Study, rows: list[Row]) -> None:
    """trials.csv."""
    names = [*FIRST, *plan.space.columns(), "objective", *NUMBERS, "error"]
    cells = (row.cells() for row in rows)
    write_csv(plan.directory / "trials.csv", names, ([found[name] for name in names] for found in cells))


def best_row(plan: Study, rows: list[Row]) -> Row | None:
    """The best trial; with Hyperband, of those that were trained furthest."""
    good = [row for row in rows if row.status in ("completed", "stopped") and row.objective is not None]
    if plan.search.tuner == "hyperband" and good:
        furthest = max(row.progress for row in good)
        good = [row for row in good if row.progress == furthest]
    if not good:
        return None
    sign = -1.0 if OBJECTIVES[plan.search.search_objective] else 1.0
    return min(good, key=lambda row: (sign * (row.objective or 0.0), row.trial_id))


def progress(plan: Study, request: TrialSpec, tokens: int) -> float:
    """The part of the whole training that a trial has done."""
    recipe = plan.recipe(request.flags, request.trial_id)
    return round(tokens / (recipe.run.max_steps * recipe.batch.batch_size * recipe.batch.sequence_length), 6)


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that count in a trial."""
    return {name: value for name, value in flags.items() if value is not None}


def write_best(plan: Study, rows: list[Row]) -> None:
    """best.cfg, when there is a best trial."""
    best = best_row(plan, rows)
    if best is None:
        return
    recipe = plan.recipe(given(best.flags), best.trial_id)
    settings = recipe.settings()
    run = dataclasses.replace(recipe.run, run_dir=str(plan.directory / "best"))
    # As the command has it: what a trial leaves out to be quick.
    text = TRAIN.flag_file({**settings, "run": run, "logging": plan.settings["logging"]})
    name = plan.search.search_objective
    directory = " ".join(str(plan.directory).split())  # A comment is one line.
    heading = (
        f"# Trial {best.trial_id} of {directory}: {name} {in_words(name, best.objective)} after {best.tokens:,} "
        f"tokens,\n# the best of {sum(row.status in ('completed', 'stopped', 'failed') for row in rows)} trials. "
        f"A longer training: --max_steps=…\n"
    )
    write_text(plan.directory / "best.cfg", heading + text)


def in_words(name: str, value: Any) -> str:
    """A number short enough to read: 0.0123, 811 MiB."""
    if value is None:
        return "none"
    if name == "peak_memory_bytes":
        return f"{int(value) >> 20} MiB"
    if name == "tokens_per_second":
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4f}" if name.startswith("validation") else f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
