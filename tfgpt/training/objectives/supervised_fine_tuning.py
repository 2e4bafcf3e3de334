"""Chat tuning: what the assistant says in conversations is the target, to the end of each of its turns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfgpt.common.errors import SettingError
from tfgpt.pipeline.chat_batches import (
    ChatRows,
    chat_training_batches,
    chat_validation_batches,
    chat_validation_steps,
    packings,
)
from tfgpt.pipeline.chat_shards import ChatShards
from tfgpt.pipeline.mixture import Mixture, mixture_weights
from tfgpt.pipeline.packing import Packing
from tfgpt.pipeline.prepare_chat import PreparedChat, prepare_chat
from tfgpt.training.distribution.strategy import distributed
from tfgpt.training.objectives.base import Objective, TrainingData, ValidationData
from tfgpt.training.train_config import TrainConfig


class SupervisedFineTuning(Objective):
    """Predict what the assistant says."""

    conversations = True
    _training_rows: tuple[list[Packing], Mixture] | None = None

    def training_rows(self, recipe: TrainConfig, data: PreparedChat) -> tuple[list[Packing], Mixture]:
        """`training_rows`, packed once for the run."""
        if self._training_rows is None:
            self._training_rows = training_rows(recipe, data)
        return self._training_rows

    def prepare(self, recipe: TrainConfig, say: Callable[[str], None] = print) -> PreparedChat:
        return prepare_chat(
            recipe.corpus,
            recipe.tokenizer_config(),
            recipe.augmentation,
            length=recipe.batch.sequence_length,
            seed=recipe.run.seed,
            say=say,
        )

    def describe_data(self, recipe: TrainConfig, data: PreparedChat) -> str:
        packed, mixture = self.training_rows(recipe, data)
        rows, places = sum(map(len, packed)), int(data.train.lengths.sum())
        length = recipe.batch.sequence_length
        read = recipe.batch.batch_size * recipe.run.max_steps
        line = (
            f"{len(data.train):,} parts of conversations in {rows:,} rows of {length} tokens, "
            f"{places / (rows * length):.1%} of which is not padding; "
            f"{data.train.manifest['learned']:,} targets, {data.validation.manifest['learned']:,} held out; "
        )
        if len(packed) == 1:
            return f"{line}the run reads {read:,} rows, {read / rows:.2g} times the conversations"
        shares = mixture.counts / mixture.counts.sum()
        names = [name for name in data.train.source_names if len_of(data.train, name)]
        words = (
            f"{name} {share:.1%} of the rows, {read * share / len(packing):.2g} times"
            for name, share, packing in zip(names, shares, packed)
        )
        return f"{line}the run reads {read:,} rows: {'; '.join(words)}"

    def uses_segments(self, recipe: TrainConfig) -> bool:
        return True

    def build_data(
        self, recipe: TrainConfig, data: PreparedChat, strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        length, size = recipe.batch.sequence_length, recipe.batch.batch_size
        padding = data.tokenizer.padding_id
        packed, mixture = self.training_rows(recipe, data)
        rows = ChatRows(data.train, length, padding, data.augmentation, data.tokenizer)

        def batches(first_step: int) -> Any:
            make = functools.partial(
                chat_training_batches, rows, packed, mixture, batch_size=size, start_step=first_step
            )
            return iter(distributed(strategy, make))

        held_out_rows = ChatRows(data.validation, length, padding)

        def held_out(packing: Packing) -> ValidationData:
            make = functools.partial(chat_validation_batches, held_out_rows, packing, batch_size=size)
            return ValidationData(distributed(strategy, make), chat_validation_steps(packing, size))

        [together] = packings(data.validation, length, by_source=False)
        apart = zip(data.validation.source_names, packings(data.validation, length, by_source=True))
        by_source = {name: held_out(packing) for name, packing in apart if len(packing)}
        return TrainingData(batches, held_out(together), by_source if len(by_source) > 1 else {})


def training_rows(recipe: TrainConfig, data: PreparedChat) -> tuple[list[Packing], Mixture]:
    """The packed rows of each source (of all together without a mixture), and what deals them out.

    Raises:
        UserError: a weight for every source is asked for, and a source has no conversation.
    """
    by_source = recipe.mixture.active
    packed = packings(data.train, recipe.batch.sequence_length, by_source, data.augmentation)
    given = recipe.mixture.mixture
    for name, packing in zip(data.train.source_names, packed):
        if given and not len(packing):
            raise SettingError(
                "mixture",
                f"gives a weight to {name}, of which no conversation is left to learn from "
                f"({data.documents.summary(name)})",
            )
    packed = [packing for packing in packed if len(packing)]
    weights = mixture_weights([len(packing) for packing in packed], given, recipe.mixture.mixture_temperature)
    return packed, Mixture([len(packing) for packing in packed], weights, recipe.run.seed)


def len_of(conversations: ChatShards, name: str) -> int:
    """How many parts a source has."""
    return int((conversations.sources == conversations.source_names.index(name)).sum())
