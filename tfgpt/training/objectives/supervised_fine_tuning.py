"""Supervised fine-tuning on conversations: the assistant's messages, with the ends of its turns, are the targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfgpt.common.errors import SettingError
from tfgpt.pipeline.batches import MixtureReader
from tfgpt.pipeline.chat_batches import ChatReader, pack_conversations
from tfgpt.pipeline.chat_shards import ChatShards
from tfgpt.pipeline.prepare import PreparedData, prepare_chat
from tfgpt.training.objectives.base import Objective, TrainingData
from tfgpt.training.objectives.readers import describe_shares, training_data
from tfgpt.training.train_config import TrainConfig


class SupervisedFineTuning(Objective):
    """Predicts the assistant's messages.

    Example:

    >>> SupervisedFineTuning().conversations
    True
    """

    conversations = True
    segments = True

    def __init__(self) -> None:
        self.reader: MixtureReader | None = None

    def prepare(self, recipe: TrainConfig, log: Callable[[str], None] = print) -> PreparedData[ChatShards]:
        return prepare_chat(
            recipe.corpus,
            recipe.tokenizer_config(),
            recipe.augmentation,
            length=recipe.batch.sequence_length,
            seed=recipe.run.seed,
            log=log,
        )

    def describe_data(self, recipe: TrainConfig, data: PreparedData[ChatShards]) -> str:
        reader, length = self.training_reader(recipe, data), recipe.batch.sequence_length
        rows = sum(source.num_rows for source in reader.readers)
        read = recipe.batch.batch_size * recipe.run.max_steps
        line = (
            f"{len(data.train):,} parts of conversations in {rows:,} rows of {length} tokens, "
            f"{int(data.train.lengths.sum()) / (rows * length):.1%} of which is not padding; "
            f"{data.train.manifest['learned']:,} targets, {data.validation.manifest['learned']:,} held out; "
            f"the run reads {read:,} rows"
        )
        if len(reader.readers) == 1:
            return f"{line}, {read / rows:.2g} times the conversations"
        names = [name for number, name in enumerate(data.train.source_names) if (data.train.sources == number).any()]
        return f"{line}: {describe_shares(names, reader, read)}"

    def build_data(
        self, recipe: TrainConfig, data: PreparedData[ChatShards], strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        length, padding_id, shards = recipe.batch.sequence_length, data.tokenizer.padding_id, data.validation
        [together] = pack_conversations(shards, length)
        by_source = {
            name: ChatReader(shards, packing, length, padding_id)
            for name, packing in zip(shards.source_names, pack_conversations(shards, length, by_source=True))
            if len(packing)
        }
        train, validation = self.training_reader(recipe, data), ChatReader(shards, together, length, padding_id)
        several = by_source if len(by_source) > 1 else {}
        return training_data(strategy, recipe.batch.batch_size, train, validation, several)

    def training_reader(self, recipe: TrainConfig, data: PreparedData[ChatShards]) -> MixtureReader:
        """Returns the reader of the packed rows of each source, or of all without a mixture; packs them once."""
        if self.reader is None:
            mixture, length = recipe.mixture, recipe.batch.sequence_length
            packings = pack_conversations(data.train, length, by_source=mixture.active, augmentation=data.augmentation)
            for name, packing in zip(data.train.source_names, packings):
                if mixture.mixture and not len(packing):
                    raise SettingError(
                        "mixture",
                        f"gives a weight to {name}, of which no conversation is left to learn from "
                        f"({data.documents.summary(name)})",
                    )
            augmentation, tokenizer = data.augmentation, data.tokenizer
            readers = [
                ChatReader(
                    data.train, packing, length, tokenizer.padding_id, augmentation=augmentation, tokenizer=tokenizer
                )
                for packing in packings
                if len(packing)
            ]
            self.reader = MixtureReader(
                readers, seed=recipe.run.seed, weights=mixture.mixture, temperature=mixture.mixture_temperature
            )
        return self.reader
