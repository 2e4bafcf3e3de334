"""Learning-rate schedules: linear warm-up, then cosine, warm-up–stable–decay, linear or constant.

A schedule is a function of the number of updates done, so a resumed run needs no schedule state. After a roll-back the
optimizer multiplies the rate by a variable, `learning_rate_scale`, see `tfgpt.training.optimizers`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.training.config import ScheduleConfig


@keras.saving.register_keras_serializable("tfgpt")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate by the number of updates done before this one, `step` = 0, 1, …

    - warm-up, `step < warmup_steps`: `(step + 1) / (warmup_steps + 1)` of the highest rate, as nanoGPT's `get_lr`,
      so that the first update already counts;
    - cosine: `final + (1 - final) * (1 + cos(pi * progress)) / 2`, progress from the warm-up's end to `total_steps`
      (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts);
    - wsd: the highest rate, then linear to `final` over the last `decay_fraction * total_steps` updates
      (Hägele et al. 2024, arXiv:2405.18392);
    - linear: linear from the warm-up's end to `total_steps`;
    - constant.

    After `total_steps` the rate stays at `final`.

    Args:
        schedule: "cosine", "wsd", "linear" or "constant".
        learning_rate: the highest rate.
        decay_fraction: fraction of the run in which wsd decays.
        final_learning_rate_fraction: the rate at the end as a fraction of the highest.

    Example:

    >>> schedule = WarmupDecay("linear", 0.5, total_steps=11, warmup_steps=1)
    >>> schedule.at(0), schedule.at(1), schedule.at(6)
    (0.25, 0.5, 0.25)
    """

    def __init__(
        self,
        schedule: str,
        learning_rate: float,
        total_steps: int,
        warmup_steps: int = 0,
        decay_fraction: float = 0.2,
        final_learning_rate_fraction: float = 0.0,
    ):
        super().__init__()
        self.schedule = schedule
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.decay_fraction = decay_fraction
        self.final_learning_rate_fraction = final_learning_rate_fraction

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at `step` (scalar tensor or number), float32; exact for fewer than 2^24 updates."""
        return self.learning_rate * self.fraction(tf.cast(step, tf.float32), tf)

    def at(self, step: int) -> float:
        return float(self.learning_rate * self.fraction(float(step), np))

    def fraction(self, step: Any, namespace: Any) -> Any:
        """Returns the rate over the highest rate; `namespace` is `tf` or `numpy`."""
        warmup, final = (step + 1.0) / (self.warmup_steps + 1.0), self.final_learning_rate_fraction
        if self.schedule == "constant":
            return namespace.minimum(warmup, 1.0)
        length = self.total_steps - self.warmup_steps
        if self.schedule == "wsd":
            length = min(length, round(self.decay_fraction * self.total_steps))
        start = self.total_steps - max(length, 1)
        progress = namespace.minimum(namespace.maximum((step - start) / (self.total_steps - start), 0.0), 1.0)
        if self.schedule == "cosine":
            decay = final + (1.0 - final) * 0.5 * (1.0 + namespace.cos(math.pi * progress))
        else:
            decay = 1.0 - (1.0 - final) * progress
        return namespace.minimum(warmup, decay)

    def get_config(self) -> dict[str, Any]:
        names = ("schedule", "learning_rate", "total_steps", "warmup_steps", "decay_fraction")
        return {name: getattr(self, name) for name in (*names, "final_learning_rate_fraction")}


def build_schedule(config: ScheduleConfig, learning_rate: float, total_steps: int) -> WarmupDecay:
    """Returns the schedule that the settings describe, with the highest rate `learning_rate`."""
    return WarmupDecay(learning_rate=learning_rate, total_steps=total_steps, **dataclasses.asdict(config))
