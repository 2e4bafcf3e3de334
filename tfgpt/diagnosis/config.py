"""Settings of `doctor`. Does not import TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class DoctorConfig(Settings):
    """What doctor shows and how long it tries; all other flags are train's.

    Example:

    >>> DoctorConfig(overfit_steps=10).preview_rows
    2
    """

    title: ClassVar[str] = "Doctor"

    overfit_steps: int = setting(
        120, "Most updates on one small batch, to check that it can be overfitted; 0: do not try.", minimum=0
    )
    max_probe_seconds: float = setting(
        60.0,
        "About the longest time, in seconds, of each trial: overfitting one batch, and measuring the speed.",
        minimum=1.0,
        maximum=1e9,
    )
    preview_rows: int = setting(2, "Rows of the first training batch that are shown decoded; 0: none.", minimum=0)
    json: bool = setting(False, "Print everything once more at the end, as one line with a JSON object.")
