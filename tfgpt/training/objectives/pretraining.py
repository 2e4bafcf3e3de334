"""Pretraining: every token of the text is a target."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.pipeline.batches import training_batches, validation_batches, validation_steps
from tfgpt.pipeline.mixed_batches import MixedRows, mixed_training_batches, windows
from tfgpt.pipeline.mixture import Mixture, mixture_weights
from tfgpt.pipeline.prepare import PreparedData, prepare
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.training.distribution.strategy import distributed
from tfgpt.training.objectives.base import Objective, TrainingData, ValidationData
from tfgpt.training.train_config import TrainConfig


class Pretraining(Objective):
    """Predict the next token of documents."""

    def prepare(self, recipe: TrainConfig, say: Callable[[str], None] = print) -> PreparedData:
        return prepare(recipe.corpus, recipe.tokenizer_config(), by_source=recipe.mixture.active, say=say)

    def describe_data(self, recipe: TrainConfig, data: PreparedData) -> str:
        total = recipe.batch.batch_size * recipe.batch.sequence_length * recipe.run.max_steps
        line = (
            f"{data.train.num_tokens:,} training tokens, {data.validation.num_tokens:,} held out; "
            f"the run reads {total:,} tokens, {total / max(data.train.num_tokens, 1):.2g} times the text"
        )
        if data.train_by_source:
            rows, shares = mixed_rows(recipe, data)
            read = recipe.batch.batch_size * recipe.run.max_steps
            words = (
                f"{name} {share:.1%} of the rows, {read * share / size:.2g} times"
                for name, share, size in zip(data.train_by_source, shares, rows.mixture.sizes)
            )
            line += f": {'; '.join(words)}"
        return line

    def build_data(
        self, recipe: TrainConfig, data: PreparedData, strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        batch = recipe.batch
        shape: dict[str, Any] = {
            "sequence_length": batch.sequence_length,
            "batch_size": batch.batch_size,
            "document_masking": batch.document_masking,
        }

        def batches(first_step: int) -> Any:
            make = functools.partial(training_batches, data.train, **shape, seed=recipe.run.seed, start_step=first_step)
            if data.train_by_source:
                rows, _ = mixed_rows(recipe, data)
                make = functools.partial(
                    mixed_training_batches, rows, batch_size=batch.batch_size, start_step=first_step
                )
            return iter(distributed(strategy, make))

        def held_out(shards: TokenShards) -> ValidationData:
            steps = validation_steps(shards, batch.sequence_length, batch.batch_size)
            return ValidationData(distributed(strategy, functools.partial(validation_batches, shards, **shape)), steps)

        by_source = {name: held_out(part) for name, part in data.validation_by_source.items() if part.num_tokens > 1}
        return TrainingData(batches, held_out(data.validation), by_source)


def mixed_rows(recipe: TrainConfig, data: PreparedData) -> tuple[MixedRows, np.ndarray]:
    """The rows of all sources in the shares that the flags give, and those shares.

    Raises:
        UserError: a source has less than one row.
    """
    batch, sources = recipe.batch, data.train_by_source
    sizes = [windows(shards, batch.sequence_length, name) for name, shards in sources.items()]
    weights = mixture_weights(sizes, recipe.mixture.mixture, recipe.mixture.mixture_temperature)
    mixture = Mixture(sizes, weights, recipe.run.seed)
    rows = MixedRows(list(sources.values()), mixture, batch.sequence_length, batch.document_masking, recipe.run.seed)
    return rows, weights
