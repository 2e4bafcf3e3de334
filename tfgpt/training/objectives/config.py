"""What a run learns: the flag, and where the code of each objective is. No TensorFlow."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, ClassVar

from tfgpt.common.settings import Settings, setting

if TYPE_CHECKING:
    from tfgpt.training.objectives.base import Objective

# Objective → module and class: a `tfgpt.training.objectives.base.Objective`, imported when a run needs it.
KINDS = {
    "pretrain": ("tfgpt.training.objectives.pretraining", "Pretraining"),
    "chat": ("tfgpt.training.objectives.supervised_fine_tuning", "SupervisedFineTuning"),
    "dpo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "ipo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "orpo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "simpo": ("tfgpt.training.objectives.preferences", "PreferenceTuning"),
    "grpo": ("tfgpt.training.objectives.grpo", "GRPO"),
}

# They need a model to start from.
FROM_A_MODEL = ("dpo", "ipo", "orpo", "simpo", "grpo")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """What is learned from the text."""

    title: ClassVar[str] = "Objective"

    objective: str = setting(
        "pretrain",
        "pretrain: predict every token of the text. chat: predict what the assistant says in conversations. dpo, ipo, "
        "orpo, simpo: prefer the better of two answers (JSON Lines with prompt, chosen, rejected). grpo: sample "
        "answers to prompts, make the better rewarded more likely (JSON Lines with prompt and what --reward needs).",
        choices=tuple(KINDS),
    )

    def kind(self) -> Objective:
        """The objective's code; imports TensorFlow."""
        module, name = KINDS[self.objective]
        return getattr(importlib.import_module(module), name)()
