"""Settings of objectives, and the module and class of each. Does not import TensorFlow."""

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

ANSWERS_AT_A_TIME = 256
"""Answers of a rollout that are sampled at once: their keys and values are all in memory."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """Settings of the objective.

    Example:

    >>> ObjectiveConfig(objective="dpo").objective in NEED_INIT_FROM
    True
    """

    title: ClassVar[str] = "Objective"

    objective: str = setting(
        "pretrain",
        "pretrain: predict every token of the text. chat: predict what the assistant says in conversations. dpo, ipo, "
        "orpo, simpo: prefer the better of two answers (JSON Lines with prompt, chosen, rejected). grpo: sample "
        "answers to prompts, make the better rewarded more likely (JSON Lines with prompt and what --reward needs).",
        choices=tuple(OBJECTIVES),
    )


@dataclasses.dataclass(frozen=True)
class PreferenceConfig(Settings):
    """Settings of the losses of pairs; see `tfgpt.training.objectives.preferences` for the formulas."""

    title: ClassVar[str] = "Preferences (--objective=dpo, ipo, orpo, simpo)"

    preference_beta: float = setting(
        0.1,
        "dpo, ipo: strength of the pull towards the model of --init_from. orpo: weight of the odds ratio, added to the "
        "likelihood of the better answer. simpo: factor on the difference, such as 2.",
        minimum=0.0,
    )
    preference_length_normalization: bool | None = setting(
        None,
        "An answer counts by its mean log probability a token, not by the sum. none: as published, the sum for dpo, "
        "the mean for ipo, orpo and simpo.",
    )
    preference_label_smoothing: float = setting(
        0.0,
        "dpo, simpo: share of the pairs that are assumed to be labelled the wrong way round.",
        minimum=0,
        maximum=0.5,
    )
    preference_margin: float = setting(1.0, "simpo: by how much the better answer is to be ahead.", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class RewardConfig(Settings):
    """Settings of GRPO: groups of sampled answers, better ones made more likely."""

    title: ClassVar[str] = "Rewards (--objective=grpo)"

    reward: tuple[str, ...] = setting(
        ("exact_match",),
        "Rewards of an answer, which are added: exact_match, number, format, length, or module:function for your own. "
        "A factor may stand before the name: 0.2*format.",
    )
    reward_pattern: str = setting(
        r"\s*-?\d+\s*", "The regular expression that the whole answer must match, for --reward=format."
    )
    reward_length: int = setting(
        64,
        "Tokens up to which an answer is rewarded in full for --reward=length; nothing from twice as many on.",
        minimum=1,
    )
    group_size: int = setting(8, "Answers sampled for each prompt.", minimum=2, maximum=2**16)
    max_completion_length: int = setting(64, "Most tokens of a sampled answer.", minimum=1)
    rollout_temperature: float = setting(1.0, "Temperature they are sampled at.", minimum=0.01)
    updates_per_rollout: int = setting(
        1,
        "Updates made with the answers of one round of sampling: the round's answers are dealt out to them.",
        minimum=1,
    )
    clip_epsilon: float = setting(
        0.2, "An answer's token counts no further once its probability has changed by this share.", minimum=0.0
    )
    kl_penalty: float = setting(
        0.04, "Weight of the divergence from the model that --init_from names; 0: none, and no reference.", minimum=0.0
    )
