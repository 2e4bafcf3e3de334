"""Settings of what follows a search. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class SeedComparisonConfig(Settings):
    """How the result of a search is judged."""

    title: ClassVar[str] = "Judging"

    compare_best: int = setting(
        0,
        "After the search: this many of the best trials, and the settings without the search, are trained again with "
        "other seeds and compared. 0: none.",
        minimum=0,
    )
    compare_seeds: int = setting(3, "Seeds of each of them: --seed + 1, --seed + 2, …", minimum=2)
    compare_tokens: int = setting(
        0, "Tokens that each of them trains on; 0: as many as the trials.", minimum=0, maximum=2**63 - 1
    )
    report_only: bool = setting(False, "No new trials: only judge and report those that --search_dir holds.")
