"""Settings of doctor's own: how much it shows and how long it tries. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class DoctorConfig(Settings):
    """How much doctor shows and how long it tries; all other flags are train's."""

    title: ClassVar[str] = "Doctor"

    overfit_steps: int = setting(
        120,
        "At most so many updates on one small batch, to see that it can be learned by heart; 0: do not try.",
        minimum=0,
    )
    max_probe_seconds: float = setting(
        60.0,
        "About the longest, in seconds, of each trial: overfitting one batch, and measuring the speed.",
        minimum=1.0,
        maximum=1e9,
    )
    preview_rows: int = setting(2, "Rows of the first training batch that are shown decoded; 0: none.", minimum=0)
    json: bool = setting(False, "Print everything once more at the end, as one line with a JSON object.")
