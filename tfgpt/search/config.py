"""Settings of a search: the space, the tuner, its budgets, and who trains. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

# Objective → whether more is better.
OBJECTIVES = {
    "validation_bits_per_byte": False,
    "validation_loss": False,
    "validation_accuracy": True,
    "tokens_per_second": True,
    "peak_memory_bytes": False,
}


@dataclasses.dataclass(frozen=True)
class SearchConfig(Settings):
    """What is searched, how, for how long and by how many workers."""

    title: ClassVar[str] = "Search"

    search_space: str | None = setting(
        None, "File of the search space: which flags, between which bounds (TOML; ready ones are in configs/search/)."
    )
    search_dir: str | None = setting(
        None,
        "Directory of the search: trials.csv, best.cfg, search.json, trials/. The same command goes on with the "
        "search it holds. Not given: that of --run_dir, with -search behind it.",
        path=True,
    )
    tuner: str = setting(
        "bayesian",
        "Which of KerasTuner's: random; grid: every combination; bayesian: a Gaussian process of what was seen; "
        "hyperband: many short trainings, of which the best go on (arXiv:1603.06560).",
        choices=("random", "grid", "bayesian", "hyperband"),
    )
    search_objective: str = setting(
        "validation_bits_per_byte",
        "What a trial is judged by; the other numbers are reported too. Bits per byte compare across tokenizers.",
        choices=tuple(OBJECTIVES),
    )
    search_seed: int = setting(0, "Seed of the values tried. --seed is that of every trial's training.", minimum=0)
    max_trials: int = setting(20, "Trials in the whole search.", minimum=1)
    max_search_tokens: int = setting(
        0, "No new trial begins after so many tokens of training; 0: no limit.", minimum=0, maximum=2**63 - 1
    )
    max_search_minutes: float = setting(
        0.0, "No new trial begins after so many minutes of searching; 0: no limit.", minimum=0.0, maximum=1e9
    )
    trial_tokens: int = setting(
        0,
        "Tokens that every trial trains on, whatever its batch: --max_steps follows. 0: as many as --max_steps says.",
        minimum=0,
        maximum=2**63 - 1,
    )
    trial_validations: int = setting(
        4,
        "Validations of every trial, spread evenly over its tokens whatever its batch. 0: as --validate_every says.",
        minimum=0,
    )
    median_stopping_after: int = setting(
        5,
        "Once so many trials are finished, a trial stops early at a validation where its best value so far is worse "
        "than the median of the others' running averages (Vizier's rule, doi:10.1145/3097983.3098043). 0: never. "
        "Hyperband does without.",
        minimum=0,
    )
    hyperband_epochs: int = setting(
        9, "With hyperband: a whole training has so many parts, each ended by a validation.", minimum=2
    )
    hyperband_factor: int = setting(3, "With hyperband: one of so many trials goes on to the next rung.", minimum=2)
    hyperband_iterations: int = setting(1, "With hyperband: times that all brackets are run.", minimum=1)
    parallel: int = setting(1, "Workers on this machine, each with a trial of its own.", minimum=1, maximum=4096)
    worker_timeout: float = setting(
        60.0,
        "Seconds without a sign of life after which a worker counts as lost and its trial is given to another.",
        minimum=2.0,
        maximum=1e9,
    )
    trial_memory_limit: int = setting(
        0,
        "MiB of memory after which a trial counts as out of memory, before the machine suffers; 0: no limit.",
        minimum=0,
    )

    def check(self) -> None:
        if self.search_space is None:
            raise SettingError("search_space", "is needed: a TOML file, such as configs/search/learning_rate.toml")
