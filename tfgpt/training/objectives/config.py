"""Settings of the objective. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.settings import Settings, setting

# --objective → module and class of a `tfgpt.training.objectives.base.Objective`, imported by `get_objective`.
OBJECTIVES = {
    "pretrain": ("tfgpt.training.objectives.pretraining", "Pretraining"),
    "chat": ("tfgpt.training.objectives.supervised_fine_tuning", "SupervisedFineTuning"),
    "dpo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "ipo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "orpo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "simpo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "grpo": ("tfgpt.training.objectives.grpo", "GRPO"),
}

NEED_INIT_FROM = ("dpo", "ipo", "orpo", "simpo", "grpo")
"""Objectives that start from a trained model."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """Settings of the objective."""

    title: ClassVar[str] = "Objective"

    objective: str = setting(
        "pretrain",
        "pretrain: predict every token of the text. chat: predict what the assistant says in conversations. dpo, ipo, "
        "orpo, simpo: prefer the better of two answers (JSON Lines with prompt, chosen, rejected). grpo: sample "
        "answers to prompts, make the better rewarded more likely (JSON Lines with prompt and what --reward needs).",
        choices=tuple(OBJECTIVES),
    )
