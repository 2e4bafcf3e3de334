"""From a recipe and prepared data to a trainer: the one place where the parts of a run are put together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.model.checkpoints.huggingface import load_weights
from tfgpt.model.decoder import Decoder
from tfgpt.pipeline.batches import training_batches, validation_batches, validation_steps
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.training.objectives import CausalLanguageModeling
from tfgpt.training.optimizers import build_optimizer
from tfgpt.training.recipe import Recipe
from tfgpt.training.schedules import build_schedule
from tfgpt.training.step import Trainer
from tfgpt.training.strategy import check_batch, distributed


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A trainer and its data.

    Attributes:
        trainer: the decoder with optimizer and step, its variables made.
        batches: first step → iterator of training batches from that step on.
        validation: the held-out set, a finite dataset, distributed when the strategy has several replicas.
        validation_steps: its global batches.
    """

    trainer: Trainer
    batches: Callable[[int], Any]
    validation: Any
    validation_steps: int


def assemble(recipe: Recipe, data: PreparedData, strategy: tf.distribute.Strategy) -> Assembly:
    """Builds the decoder, the optimizer and the step inside the strategy's scope, and the data feeds.

    Args:
        recipe: the run's settings.
        data: tokenizer and shards.
        strategy: where the variables live.

    Raises:
        UserError: the settings do not fit the data, the devices or the model to start from.
    """
    batch = recipe.batch
    check_batch(batch.batch_size, recipe.step.accumulation_steps, strategy)
    keras.utils.set_random_seed(recipe.run.seed)
    with strategy.scope():
        trainer = build_trainer(recipe, data.tokenizer.vocabulary_size, data.tokenizer.byte_lengths())

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
    return Assembly(trainer, batches, validation, steps)


def build_trainer(recipe: Recipe, vocabulary_size: int, token_byte_lengths: np.ndarray | None = None) -> Trainer:
    """The decoder, its objective, the optimizer and the step, all variables made; call it in the strategy's scope.

    Args:
        recipe: the run's settings.
        vocabulary_size: the tokenizer's.
        token_byte_lengths: as `Trainer`'s.

    Raises:
        UserError: the settings do not fit the vocabulary or the model to start from.
    """
    batch = recipe.batch
    config = recipe.decoder_config(vocabulary_size)
    decoder = Decoder(config, packed=batch.document_masking, dtype=recipe.step.dtype)
    if recipe.run.init_from is not None:
        load_weights(decoder, recipe.run.init_from)
    schedule = build_schedule(recipe.schedule, recipe.optimizer.learning_rate, recipe.run.max_steps)
    objective = CausalLanguageModeling(
        label_smoothing=recipe.step.label_smoothing,
        z_loss=recipe.step.z_loss,
        chunk_tokens=recipe.step.cross_entropy_chunk_tokens,
    )
    trainer = Trainer(
        decoder,
        objective,
        recipe.step,
        recipe.optimizer,
        seed=recipe.run.seed,
        token_byte_lengths=token_byte_lengths,
        batch_shape=(batch.batch_size, batch.sequence_length),
    )
    trainer.compile(
        optimizer=build_optimizer(recipe.optimizer, schedule, decoder, parametrization=recipe.parametrization)
    )
    return trainer
