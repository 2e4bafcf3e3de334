"""Pretraining: every token of the text is a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfgpt.pipeline.batches import MixtureReader, TokenReader
from tfgpt.pipeline.prepare import PreparedData, prepare
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.training.objectives.base import Objective, TrainingData
from tfgpt.training.objectives.readers import describe_shares, training_data
from tfgpt.training.train_config import TrainConfig


class Pretraining(Objective):
    """Predicts the next token of documents."""

    def prepare(self, recipe: TrainConfig, log: Callable[[str], None] = print) -> PreparedData[TokenShards]:
        return prepare(recipe.corpus, recipe.tokenizer_config(), by_source=recipe.mixture.active, log=log)

    def describe_data(self, recipe: TrainConfig, data: PreparedData[TokenShards]) -> str:
        rows = recipe.batch.batch_size * recipe.run.max_steps
        total = rows * recipe.batch.sequence_length
        line = (
            f"{data.train.num_tokens:,} training tokens, {data.validation.num_tokens:,} held out; "
            f"the run reads {total:,} tokens, {total / max(data.train.num_tokens, 1):.2g} times the text"
        )
        if data.train_by_source:
            line += f": {describe_shares(data.train_by_source, mixture_reader(recipe, data), rows)}"
        return line

    def build_data(
        self,
        recipe: TrainConfig,
        data: PreparedData[TokenShards],
        strategy: tf.distribute.Strategy,
        trainer: Any = None,
    ) -> TrainingData:
        def reader(shards: TokenShards, seed: int | None = None) -> TokenReader:
            length, masking = recipe.batch.sequence_length, recipe.batch.document_masking
            return TokenReader(shards, length, seed=seed, document_masking=masking)

        train = mixture_reader(recipe, data) if data.train_by_source else reader(data.train, recipe.run.seed)
        by_source = {name: reader(part) for name, part in data.validation_by_source.items() if part.num_tokens > 1}
        return training_data(strategy, recipe.batch.batch_size, train, reader(data.validation), by_source)


def mixture_reader(recipe: TrainConfig, data: PreparedData[TokenShards]) -> MixtureReader:
    """Returns the reader of all sources in the shares of the flags; raises `UserError` if one has less than a row."""
    batch, mixture, seed = recipe.batch, recipe.mixture, recipe.run.seed
    readers = [
        TokenReader(shards, batch.sequence_length, seed=seed + number, document_masking=batch.document_masking)
        for number, shards in enumerate(data.train_by_source.values())
    ]
    return MixtureReader(readers, seed=seed, weights=mixture.mixture, temperature=mixture.mixture_temperature)
