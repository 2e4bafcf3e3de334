"""Settings of a search and of the comparison of its best trials. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

# Objective → whether it is maximized.
OBJECTIVES = {
    "validation_bits_per_byte": False,
    "validation_loss": False,
    "validation_accuracy": True,
    "tokens_per_second": True,
    "peak_memory_bytes": False,
}


@dataclasses.dataclass(frozen=True)
class SearchConfig(Settings):
    """The search space, the tuner, the budgets and the workers.

    Example:

    >>> SearchConfig(search_space="space.toml", tuner="grid").max_trials
    20
    """

    title: ClassVar[str] = "Search"

    search_space: str | None = setting(
        None, "File of the search space: flags and their bounds (TOML; configs/search/ has ready ones)."
    )
    search_dir: str | None = setting(
        None,
        "Directory of the search: trials.csv, best.cfg, search.json, trials/. The same command continues the search "
        "in it. Default: --run_dir with the suffix -search.",
        path=True,
    )
    tuner: str = setting(
        "bayesian",
        "KerasTuner's algorithm: random; grid: all combinations; bayesian: a Gaussian process of earlier results; "
        "hyperband: many short trainings, of which the best continue (arXiv:1603.06560).",
        choices=("random", "grid", "bayesian", "hyperband"),
    )
    search_objective: str = setting(
        "validation_bits_per_byte",
        "The number that is optimized; the others are reported too. Bits per byte compare across tokenizers.",
        choices=tuple(OBJECTIVES),
    )
    search_seed: int = setting(0, "Seed of the values tried. --seed is the seed of each training.", minimum=0)
    max_trials: int = setting(20, "Trials in the whole search.", minimum=1)
    max_search_tokens: int = setting(
        0, "No new trial starts after this number of training tokens; 0: no limit.", minimum=0, maximum=2**63 - 1
    )
    max_search_minutes: float = setting(
        0.0, "No new trial starts after this number of minutes; 0: no limit.", minimum=0.0, maximum=1e9
    )
    trial_tokens: int = setting(
        0,
        "Training tokens of each trial; --max_steps follows from the trial's batch. 0: as --max_steps says.",
        minimum=0,
        maximum=2**63 - 1,
    )
    trial_validations: int = setting(
        4,
        "Validations of each trial, spread evenly over its tokens. 0: as --validate_every says.",
        minimum=0,
    )
    median_stopping_after: int = setting(
        5,
        "After this number of finished trials, a trial stops at a validation if its best value so far is worse than "
        "the median of the others' running averages (Vizier's rule, doi:10.1145/3097983.3098043). 0: never. "
        "Hyperband does not use it.",
        minimum=0,
    )
    hyperband_epochs: int = setting(
        9, "With hyperband: number of parts of a full training, each ended by a validation.", minimum=2
    )
    hyperband_factor: int = setting(3, "With hyperband: one of so many trials continues on the next rung.", minimum=2)
    hyperband_iterations: int = setting(1, "With hyperband: repetitions of all brackets.", minimum=1)
    parallel: int = setting(1, "Workers on this machine, each training one trial at a time.", minimum=1, maximum=4096)
    worker_timeout: float = setting(
        60.0,
        "Seconds without a heartbeat after which a worker counts as lost and another one gets its trial.",
        minimum=2.0,
        maximum=1e9,
    )
    trial_memory_limit: int = setting(
        0,
        "MiB of memory above which a trial is killed and counts as out of memory; 0: no limit.",
        minimum=0,
    )

    def check(self) -> None:
        if self.search_space is None:
            raise SettingError("search_space", "is required: a TOML file, such as configs/search/learning_rate.toml")


@dataclasses.dataclass(frozen=True)
class SeedComparisonConfig(Settings):
    """The comparison of the best trials over several seeds, and the report.

    Example:

    >>> SeedComparisonConfig(compare_best=2).compare_seeds
    3
    """

    title: ClassVar[str] = "Seed comparison"

    compare_best: int = setting(
        0,
        "After the search: this number of the best trials, and the settings without the search, are trained again "
        "with other seeds and compared. 0: none.",
        minimum=0,
    )
    compare_seeds: int = setting(3, "Seeds of each of them: --seed + 1, --seed + 2, …", minimum=2)
    compare_tokens: int = setting(
        0, "Training tokens of each of them; 0: as many as the trials.", minimum=0, maximum=2**63 - 1
    )
    report_only: bool = setting(False, "No new trials: only compare and report those in --search_dir.")
