"""What an objective is to a run: which data it needs, what it feeds, what it minimizes.

A new objective is a subclass of `Objective` in a module of its own, named in `objectives.config.KINDS`; the run, the
loop, checkpoints and hosts know nothing of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.training.losses import CausalLanguageModelingLoss

if TYPE_CHECKING:
    from tfgpt.tokenization.tokenizer import Tokenizer
    from tfgpt.training.train_config import TrainConfig


GREETING = "Hello!"
"""What a model of conversations is asked on the way when --sample_prompt says nothing."""


@dataclasses.dataclass(frozen=True)
class ValidationData:
    """A held-out set.

    Attributes:
        dataset: a finite dataset of global batches, distributed when the strategy has several replicas.
        steps: its global batches.
    """

    dataset: Any
    steps: int


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Attributes:
        batches: first step → iterator of training batches from that step on; step s gets the same batch always.
        validation: what the run is judged by.
        by_source: the same by source, where there are several: measured and written down, not judged by.
        updates_per_rollout: of objectives that make their own data: `batches` is asked again after so many updates, at
            which checkpoints and measurements fall. 0: data do not depend on the model.
        measure: judges the model in place of `validation`: numbers by name, `loss` among them.
    """

    batches: Callable[[int], Any]
    validation: ValidationData
    by_source: Mapping[str, ValidationData] = dataclasses.field(default_factory=dict)
    updates_per_rollout: int = 0
    measure: Callable[[], dict[str, float]] | None = None


class Objective:
    """An objective's part in a run. One object serves one run.

    Attributes:
        conversations: whether it learns from conversations; where only the data say so, `prepare` sets it.
    """

    conversations = False

    def prepare(self, recipe: TrainConfig, say: Callable[[str], None] = print) -> Any:
        """Makes, or finds in the cache, what `feeds` reads.

        Returns:
            What has `tokenizer` (`Tokenizer`), `fingerprint` (hexadecimal digest of all of it: a run refuses to go on
            with another) and `manifest` (JSON: where it comes from).

        Raises:
            UserError: the data or a flag are at fault.
        """
        raise NotImplementedError

    def in_words(self, recipe: TrainConfig, data: Any) -> str:
        """One line on how much there is to read, printed at the start."""
        raise NotImplementedError

    def packed(self, recipe: TrainConfig) -> bool:
        """Whether batches have `segment_ids` and `positions`."""
        return recipe.batch.document_masking

    def rows(self, recipe: TrainConfig) -> int:
        """Rows of a global batch."""
        return recipe.batch.batch_size

    def loss(self, recipe: TrainConfig) -> Any:
        """What the step minimizes: called as `losses.CausalLanguageModelingLoss` is, returns such sums.

        It names further sums in `means`, which are divided by `weight_sum` and written down, and says in `unit` what
        that counts.
        """
        return CausalLanguageModelingLoss(
            label_smoothing=recipe.step.label_smoothing,
            z_loss=recipe.step.z_loss,
            chunk_tokens=recipe.step.cross_entropy_chunk_tokens,
        )

    def attend(self, trainer: Any) -> None:
        """Told, before `feeds` is called, which trainer will learn; for objectives that sample from its model."""
        self.trainer = trainer

    def prompt(self, tokenizer: Tokenizer, text: str) -> str | np.ndarray:
        """What the model reads of a --sample_prompt: the text, or the ids of a user's turn up to the answer."""
        if not self.conversations:
            return text
        return encode_messages(tokenizer, [{"role": "user", "content": text or GREETING}], True)[0]

    def feeds(self, recipe: TrainConfig, data: Any, strategy: tf.distribute.Strategy) -> TrainingData:
        """The batches, distributed as the strategy wants them.

        Raises:
            UserError: the data hold too little for one batch, or the flags do not fit the devices.
        """
        raise NotImplementedError
