"""Pretraining: every token of the text is a target."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfgpt.pipeline.batches import training_batches, validation_batches, validation_steps
from tfgpt.pipeline.prepare import PreparedData, prepare
from tfgpt.training.kinds import Feeds, HeldOut, Kind
from tfgpt.training.recipe import Recipe
from tfgpt.training.strategy import distributed


class Pretraining(Kind):
    """Predict the next token of documents."""

    def prepare(self, recipe: Recipe, say: Callable[[str], None] = print) -> PreparedData:
        return prepare(recipe.corpus, recipe.tokenizer_config(), say=say)

    def in_words(self, recipe: Recipe, data: PreparedData) -> str:
        total = recipe.batch.batch_size * recipe.batch.sequence_length * recipe.run.max_steps
        return (
            f"{data.train.num_tokens:,} training tokens, {data.validation.num_tokens:,} held out; "
            f"the run reads {total:,} tokens, {total / max(data.train.num_tokens, 1):.2g} times the text"
        )

    def feeds(self, recipe: Recipe, data: PreparedData, strategy: tf.distribute.Strategy) -> Feeds:
        batch = recipe.batch
        shape: dict[str, Any] = {
            "sequence_length": batch.sequence_length,
            "batch_size": batch.batch_size,
            "document_masking": batch.document_masking,
        }

        def batches(first_step: int) -> Any:
            make = functools.partial(training_batches, data.train, **shape, seed=recipe.run.seed, start_step=first_step)
            return iter(distributed(strategy, make))

        validation = distributed(strategy, functools.partial(validation_batches, data.validation, **shape))
        steps = validation_steps(data.validation, batch.sequence_length, batch.batch_size)
        return Feeds(batches, HeldOut(validation, steps))
