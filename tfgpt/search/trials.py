"""The table of a search: trials.csv, one row a trial, and best.cfg, the flags of the best trial. No TensorFlow."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json, write_csv, write_text
from tfgpt.common.errors import UserError
from tfgpt.search.config import OBJECTIVES
from tfgpt.search.study import TRAIN, Study

FINISHED = ("completed", "stopped")
MEASURED = (
    "validation_bits_per_byte", "validation_loss", "validation_accuracy", "tokens", "tokens_per_second",
    "peak_memory_bytes", "seconds", "parameters",
)  # fmt: skip
FIRST_COLUMNS = ("trial_id", "status", "rung", "bracket", "continues")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row of trials.csv.

    Attributes:
        trial_id: for example "0007".
        status: "running", "waiting" (killed, to be tried once more), "completed", "stopped" (by the median rule) or
            "failed".
        flags: the searched flags that apply to the trial.
        objective: the number that the search minimizes or maximizes; None if it was not measured.
        numbers: `MEASURED`, as far as known, and Hyperband's `rung` and `bracket`. `tokens` counts lower rungs too;
            `seconds` is wall time over all processes of the trial.
        continues: with Hyperband, the trial of the lower rung.
        error: the reason of a failure.
    """

    trial_id: str
    status: str
    flags: dict[str, Any]
    objective: float | None = None
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    continues: str = ""
    error: str = ""

    def describe(self) -> str:
        """Returns the values, such as `learning_rate 0.0123, batch_size 8, bracket 1 rung 0`."""
        words = [f"{name} {format_value(name, value)}" for name, value in self.flags.items()]
        if "rung" in self.numbers:
            words.append(f"bracket {self.numbers['bracket']} rung {self.numbers['rung']}")
        if self.continues:
            words.append(f"from the checkpoint of {self.continues}")
        return ", ".join(words)

    def cells(self, names: Sequence[str]) -> list[Any]:
        """Returns the values of the columns; those that are unknown are empty."""
        values = {**vars(self), **self.numbers, **self.flags}
        found = [values.get(name) for name in names]
        return [json.dumps(value) if isinstance(value, (list, tuple, bool)) else value for value in found]


@dataclasses.dataclass(frozen=True)
class TrialTable:
    """All trials of a search in the order of their start, the searched flags and the name of the objective."""

    directory: Path
    objective: str
    parameters: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def more_is_better(self) -> bool:
        return OBJECTIVES[self.objective]

    def ranked(self) -> list[Trial]:
        """Returns the finished trials, best first; with Hyperband those on a higher rung come before lower ones."""
        sign = -1.0 if self.more_is_better else 1.0

        def key(trial: Trial) -> tuple[float, float, str]:
            rungs_left = trial.numbers.get("bracket", 0) - trial.numbers.get("rung", 0)
            return rungs_left, sign * (trial.objective or 0.0), trial.trial_id

        return sorted((each for each in self.trials if each.status in FINISHED and each.objective is not None), key=key)

    def write(self) -> None:
        names = [*FIRST_COLUMNS, *self.parameters, "objective", *MEASURED, "error"]
        write_csv(self.directory / "trials.csv", names, (trial.cells(names) for trial in self.trials))


def read_trials(directory: Path) -> TrialTable:
    """Reads trials.csv and search.json. Numbers come back as numbers, all other values as text."""
    path, record = directory / "trials.csv", directory / "search.json"
    for needed in (path, record):
        if not needed.is_file():
            raise UserError(f"--search_dir: {directory} does not contain a search ({needed.name} is missing)")
    with open(path, newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    try:
        parameters = tuple(names[names.index("continues") + 1 : names.index("objective")])
        objective = read_json(record)["search"]["search_objective"]
        table = TrialTable(directory, objective, parameters, ())
        table = dataclasses.replace(table, trials=tuple(parse_row(names, row, parameters) for row in rows))
        table.ranked()
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: not the table of a search ({error})") from error
    return table


def parse_row(names: Sequence[str], row: Sequence[str], parameters: Sequence[str]) -> Trial:
    text = dict(zip(names, row, strict=True))
    values = {name: parse_cell(cell) for name, cell in text.items()}
    numbers = {name: values[name] for name in ("rung", "bracket", *MEASURED) if isinstance(values[name], (int, float))}
    objective = values["objective"] if isinstance(values["objective"], (int, float)) else math.nan
    return Trial(
        trial_id=text["trial_id"],
        status=text["status"],
        flags={name: values[name] for name in parameters if values[name] is not None},
        objective=float(objective) if math.isfinite(objective) else None,
        numbers=numbers,
        continues=text["continues"],
        error=text["error"],
    )


def parse_cell(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def write_best(study: Study, table: TrialTable) -> None:
    """Writes best.cfg, if a trial is finished."""
    if not (ranked := table.ranked()):
        return
    best = ranked[0]
    config = study.train_config(best.flags, best.trial_id)
    run = dataclasses.replace(config.run, run_dir=str(study.directory / "best"))
    # The logging is that of the command: a trial leaves some of it out to be quick.
    text = TRAIN.flag_file({**config.settings(), "run": run, "logging": study.settings["logging"]})
    ended = sum(trial.status in (*FINISHED, "failed") for trial in table.trials)
    directory = " ".join(str(study.directory).split())  # A comment is one line.
    heading = (
        f"# Trial {best.trial_id} of {directory}: {table.objective} {format_value(table.objective, best.objective)} "
        f"after {best.numbers['tokens']:,} tokens,\n# the best of {ended} trials. A longer training: --max_steps=…\n"
    )
    write_text(study.directory / "best.cfg", heading + text)


def format_value(name: str, value: Any) -> str:
    """Returns a value of a column in short form: 0.0123, 811 MiB, 12,345."""
    if value is None:
        return ""
    if name == "peak_memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    if name in ("tokens", "parameters", "tokens_per_second"):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4f}" if name.startswith("validation") else f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
