"""Settings of batches, mixtures and augmentation. Does not import TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class BatchConfig(Settings):
    """Settings of the batches.

    Example:

    >>> BatchConfig(batch_size=8).sequence_length
    256
    """

    title: ClassVar[str] = "Batches"

    sequence_length: int = setting(
        256, "Tokens a row of a batch: the context the model is trained with.", minimum=1, maximum=2**24
    )
    batch_size: int = setting(
        32,
        "Rows of the global batch of one optimizer step, over all replicas, hosts and micro-batches.",
        minimum=1,
        maximum=2**20,
    )
    document_masking: bool = setting(
        False, "Attention stays within a document and positions restart at its beginning, instead of running on."
    )


@dataclasses.dataclass(frozen=True)
class MixtureConfig(Settings):
    """Settings of the shares of sources.

    Example:

    >>> MixtureConfig(mixture=("3", "1")).active
    True
    """

    title: ClassVar[str] = "Mixture of sources"

    mixture: tuple[str, ...] = setting(
        (),
        "Weight of each --train_text, in the same order: with 3 and 1, three rows of the first to one of the second. "
        "Not given: by size.",
    )
    mixture_temperature: float = setting(
        1.0,
        "Without weights: shares are size^(1/temperature). 1 is by size; higher gives small sources more; 1000 gives "
        "all the same.",
        minimum=0.01,
    )

    def check(self) -> None:
        for weight in self.mixture:
            try:
                fine = 0 < float(weight) < float("inf")
            except ValueError:
                fine = False
            if not fine:
                raise SettingError("mixture", f"{weight!r} is not a number above 0")
        if self.mixture and self.mixture_temperature != 1:
            raise SettingError("mixture_temperature", "is for sources without --mixture, which says the shares itself")

    @property
    def active(self) -> bool:
        """Rows are drawn by source."""
        return bool(self.mixture) or self.mixture_temperature != 1


@dataclasses.dataclass(frozen=True)
class AugmentationConfig(Settings):
    """Settings of conversations, and of the augmentation of user messages.

    Example:

    >>> AugmentationConfig(augment_casing=0.1).repeat_system
    True
    """

    title: ClassVar[str] = "Conversations (with --objective=chat)"

    repeat_system: bool = setting(
        True, "A conversation longer than a row is cut before a user's turn; each part begins with the system message."
    )
    paraphrases: str | None = setting(
        None,
        "Pairs of phrasings of user messages: a file of JSON Lines with text and paraphrase, or of two columns "
        "separated by a tab, or tfds:NAME:SPLIT#FEATURE,FEATURE.",
    )
    augment_paraphrase: float = setting(
        0.5, "Probability that a user message with paraphrases is replaced by one.", minimum=0.0, maximum=1.0
    )
    augment_word_dropout: float = setting(
        0.0,
        "Probability that a word of a user message is left out (a character, in Chinese).",
        minimum=0.0,
        maximum=0.9,
    )
    augment_casing: float = setting(
        0.0,
        "Probability that a user message changes its case: all small, all capitals, …",
        minimum=0.0,
        maximum=1.0,
    )
    augment_spacing: float = setting(
        0.0, "Probability that a space of a user message becomes none or two.", minimum=0.0, maximum=1.0
    )


@dataclasses.dataclass(frozen=True)
class PrepareConfig(Settings):
    """Settings of the `prepare` command.

    Example:

    >>> PrepareConfig().overwrite
    False
    """

    title: ClassVar[str] = "Results"

    output_dir: str | None = setting(
        None,
        "Also put tokenizer, token shards and data card here: hard links to the cache, copies on another disk.",
        path=True,
    )
    overwrite: bool = setting(False, "Replace --output_dir, even if it holds other files.")
    preview: int = setting(
        0, "With --objective=chat: rows to show as the model sees them, what it does not learn dimmed.", minimum=0
    )
