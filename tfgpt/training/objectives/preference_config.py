"""Settings of learning from preferences and from rewards. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.settings import Settings, setting

ANSWERS_AT_A_TIME = 256
"""Answers to rate that are written at once: their keys and values are all in memory."""


@dataclasses.dataclass(frozen=True)
class PreferenceConfig(Settings):
    """What is made of pairs of answers; see `tfgpt.training.objectives.preference_losses` for the formulas."""

    title: ClassVar[str] = "Preferences (--objective=dpo, ipo, orpo, simpo)"

    preference_beta: float = setting(
        0.1,
        "dpo, ipo: how much leaving the model that --init_from names costs. orpo: weight of the odds ratio beside the "
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
    """Learning from rewards: groups of sampled answers, better ones made more likely (GRPO)."""

    title: ClassVar[str] = "Rewards (--objective=grpo)"

    reward: tuple[str, ...] = setting(
        ("exact_match",),
        "What an answer is rewarded for: exact_match, number, format, length, or module:function of one's own; the sum "
        "counts. A factor may stand before it: 0.2*format.",
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
