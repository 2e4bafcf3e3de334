"""The interface of objectives: preparing data, building batches and the loss function.

A new objective is a subclass of `Objective`, listed in `objective_config.OBJECTIVES`. Run, loop and checkpoints do not
change.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.training.losses import CausalLanguageModelingLoss
from tfgpt.training.objective_config import OBJECTIVES

if TYPE_CHECKING:
    from tfgpt.tokenization.tokenizer import Tokenizer
    from tfgpt.training.train_config import TrainConfig


GREETING = "Hello!"
"""Question put to a model of conversations for a sample when --sample_prompt is empty."""


@dataclasses.dataclass(frozen=True)
class ValidationData:
    """A held-out set: a dataset of `steps` global batches, distributed when the strategy has several replicas."""

    dataset: Any
    steps: int


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The data of a run, from the objective to the training loop.

    Attributes:
        batches: first step → iterator of training batches from that step on; a step always gets the same batch.
        validation: the held-out set.
        validation_by_source: held-out sets of single sources, where there are several; measured in addition.
        updates_per_rollout: `batches` is called again after so many updates, and checkpoints and validations fall
            there; for objectives that sample their own data. 0: data do not depend on the model.
        evaluate_fn: returns validation metrics, `loss` among them, in place of `validation`.

    Example:

    >>> dataset = tf.data.Dataset.range(3)
    >>> data = TrainingData(lambda step: iter(dataset.skip(step)), ValidationData(dataset, steps=3))
    >>> next(data.batches(2)).numpy().item()
    2
    """

    batches: Callable[[int], Any]
    validation: ValidationData
    validation_by_source: Mapping[str, ValidationData] = dataclasses.field(default_factory=dict)
    updates_per_rollout: int = 0
    evaluate_fn: Callable[[], dict[str, float]] | None = None


class Objective:
    """The part of a run that depends on what is learned. One object serves one run.

    Attributes:
        conversations: whether it learns from conversations. Where only the data tell, `prepare` sets it.
        segments: whether batches have `segment_ids` and `positions`; None: with --document_masking.

    Example:

    >>> get_objective("chat").conversations
    True
    """

    conversations = False
    segments: bool | None = None

    def prepare(self, recipe: TrainConfig, log: Callable[[str], None] = print) -> Any:
        """Makes what `build_data` reads, or finds it in the cache.

        Returns:
            An object with `tokenizer` (`Tokenizer`), `fingerprint` (hexadecimal digest of all data: a run is not
            resumed with another) and `manifest` (JSON: where the data come from).
        """
        raise NotImplementedError

    def describe_data(self, recipe: TrainConfig, data: Any) -> str:
        """Returns one line on the amount of data, printed at the start."""
        raise NotImplementedError

    def rows(self, recipe: TrainConfig) -> int:
        return recipe.batch.batch_size

    def loss(self, recipe: TrainConfig) -> Any:
        """Returns the loss function, called as `losses.CausalLanguageModelingLoss` is, which returns such sums.

        The sums that it names in `means` are divided by `weight_sum` and written to the metrics.
        """
        return CausalLanguageModelingLoss(
            label_smoothing=recipe.step.label_smoothing,
            z_loss=recipe.step.z_loss,
            chunk_tokens=recipe.step.cross_entropy_chunk_tokens,
        )

    def prompt(self, tokenizer: Tokenizer, text: str) -> str | np.ndarray:
        """Returns the model's input for a --sample_prompt: the text, or the ids of a user's turn up to the answer."""
        if not self.conversations:
            return text
        return encode_messages(tokenizer, [{"role": "user", "content": text or GREETING}], True)[0]

    def build_data(
        self, recipe: TrainConfig, data: Any, strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        """Builds the distributed batches from the result of `prepare`; objectives that sample use the `Trainer`."""
        raise NotImplementedError


def get_objective(name: str) -> Objective:
    """Returns a new objective by the name that --objective has for it."""
    module, class_name = OBJECTIVES[name]
    return getattr(importlib.import_module(module), class_name)()
