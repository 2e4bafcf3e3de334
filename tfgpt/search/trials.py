"""trials.csv as everybody reads it who judges a search: which columns are hyperparameters, which trials count.

No TensorFlow, and nothing of the search itself: the directory alone says everything.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.search.config import OBJECTIVES

FINISHED = ("completed", "stopped")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row of trials.csv.

    Attributes:
        trial_id: "0007".
        status: as `tfgpt.search.trial_results.Row`'s.
        flags: the searched flags that count in it: numbers as numbers, everything else as text.
        objective: what it is judged by; None where it was not measured.
        numbers: the measured columns that hold a number.
        error: why it failed.
    """

    trial_id: str
    status: str
    flags: dict[str, Any]
    objective: float | None
    numbers: dict[str, float]
    error: str


@dataclasses.dataclass(frozen=True)
class Trials:
    """A search directory's table.

    Attributes:
        directory: SEARCH_DIR.
        objective: the name of what trials are judged by.
        more_is_better: whether it is maximized.
        parameters: the searched flags, in order.
        trials: in the file's order.
    """

    directory: Path
    objective: str
    more_is_better: bool
    parameters: tuple[str, ...]
    trials: tuple[Trial, ...]

    def ranked(self) -> list[Trial]:
        """The finished trials, best first; those that were trained furthest before shorter ones (Hyperband)."""
        finished = [trial for trial in self.trials if trial.status in FINISHED and trial.objective is not None]
        sign = -1.0 if self.more_is_better else 1.0
        by_rung = any("rung" in trial.numbers for trial in finished)

        def place(trial: Trial) -> tuple[float, float, str]:
            tokens = trial.numbers.get("tokens", 0.0) if by_rung else 0.0
            return -tokens, sign * float(trial.objective or 0.0), trial.trial_id

        return sorted(finished, key=place)


def read_trials(directory: Path) -> Trials:
    """Reads trials.csv and search.json.

    Raises:
        UserError: there is no search in the directory, or its table is damaged; the line names the file.
    """
    path, about = directory / "trials.csv", directory / "search.json"
    for needed in (path, about):
        if not needed.is_file():
            raise UserError(f"--search_dir: {directory} holds no search ({needed.name} is missing)")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        file.seek(0)
        names = next(csv.reader(file), [])
    try:
        last_of_head = max(names.index(name) for name in names if name in ("rung", "bracket", "continues", "status"))
        parameters = tuple(names[last_of_head + 1 : names.index("objective")])
        objective = read_json(about)["search"]["search_objective"]
        more_is_better = OBJECTIVES[objective]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: is not the table of a search ({error})") from error
    trials = tuple(trial_of(row, parameters) for row in rows)
    return Trials(directory, objective, more_is_better, parameters, trials)


def trial_of(row: dict[str, str], parameters: tuple[str, ...]) -> Trial:
    """A row as a trial."""
    values = {name: value_of(text) for name, text in row.items()}
    flags = {name: values[name] for name in parameters if values[name] is not None}
    others = [name for name in row if name not in (*parameters, "trial_id", "objective")]
    numbers = {name: float(value) for name in others if isinstance(value := values[name], (int, float))}
    objective = values["objective"]
    measured = float(objective) if isinstance(objective, (int, float)) and math.isfinite(objective) else None
    return Trial(row["trial_id"], row["status"], flags, measured, numbers, row["error"])


def value_of(text: str | None) -> int | float | str | None:
    """A cell: a number where it reads as one, None where it is empty."""
    if text is None or text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def in_words(name: str, value: Any) -> str:
    """A cell as people read it: 0.0123, 811 MiB, 12,345."""
    if value is None:
        return ""
    if name == "peak_memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    if name in ("tokens", "parameters", "tokens_per_second"):
        return f"{value:,.0f}"
    if name.startswith("validation") or name == "objective":
        return f"{value:.4f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
