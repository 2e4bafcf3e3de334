"""From a recipe and prepared data to a trainer: the one place where the parts of a run are put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.model.checkpoints.huggingface import load_weights
from tfgpt.model.decoder import Decoder
from tfgpt.model.lora import enable_lora
from tfgpt.training.distribution.strategy import check_batch
from tfgpt.training.objectives.base import Objective, ValidationData
from tfgpt.training.optimizers import build_optimizer
from tfgpt.training.schedules import build_schedule
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class RunParts:
    """A trainer and its data.

    Attributes:
        trainer: the decoder with optimizer and step, its variables made.
        batches: first step → iterator of training batches from that step on.
        validation: the held-out set, a finite dataset, distributed when the strategy has several replicas.
        validation_steps: its global batches.
        by_source: the held-out sets of single sources, where there are several.
        updates_per_rollout, measure: as `TrainingData`'.
    """

    trainer: Trainer
    batches: Callable[[int], Any]
    validation: Any
    validation_steps: int
    by_source: Mapping[str, ValidationData] = dataclasses.field(default_factory=dict)
    updates_per_rollout: int = 0
    measure: Callable[[], dict[str, float]] | None = None


def assemble(
    recipe: TrainConfig, data: Any, strategy: tf.distribute.Strategy, kind: Objective | None = None
) -> RunParts:
    """Builds the decoder, the optimizer and the step inside the strategy's scope, and the data feeds.

    Args:
        recipe: the run's settings.
        data: what the objective prepared.
        strategy: where the variables live.
        kind: the objective that prepared the data; None: a new one.

    Raises:
        UserError: the settings do not fit the data, the devices or the model to start from.
    """
    batch = recipe.batch
    check_batch(batch.batch_size, recipe.step.gradient_accumulation_steps, strategy)
    keras.utils.set_random_seed(recipe.run.seed)
    kind = kind or recipe.objective.kind()
    with strategy.scope():
        trainer = build_trainer(recipe, data.tokenizer.vocabulary_size, data.tokenizer.byte_lengths(), kind)
    kind.attend(trainer)
    feeds = kind.feeds(recipe, data, strategy)
    return RunParts(
        trainer,
        feeds.batches,
        feeds.validation.dataset,
        feeds.validation.steps,
        feeds.by_source,
        feeds.updates_per_rollout,
        feeds.measure,
    )


def build_trainer(
    recipe: TrainConfig,
    vocabulary_size: int,
    token_byte_lengths: np.ndarray | None = None,
    kind: Objective | None = None,
) -> Trainer:
    """The decoder, its objective, the optimizer and the step, all variables made; call it in the strategy's scope.

    Args:
        recipe: the run's settings.
        vocabulary_size: the tokenizer's.
        token_byte_lengths: as `Trainer`'s.
        kind: the objective; None: the recipe's.

    Raises:
        UserError: the settings do not fit the vocabulary or the model to start from.
    """
    batch, kind = recipe.batch, kind or recipe.objective.kind()
    config = recipe.decoder_config(vocabulary_size)
    decoder = Decoder(config, packed=kind.packed(recipe), dtype=recipe.step.dtype)
    if recipe.run.init_from is not None:
        load_weights(decoder, recipe.initial_model)
    if recipe.lora.lora_rank:
        enable_lora(decoder, recipe.lora)
    schedule = build_schedule(recipe.schedule, recipe.optimizer.learning_rate, recipe.run.max_steps)
    trainer = Trainer(
        decoder,
        kind.loss(recipe),
        recipe.step,
        recipe.optimizer,
        seed=recipe.run.seed,
        token_byte_lengths=token_byte_lengths,
        batch_shape=(kind.rows(recipe), batch.sequence_length),
    )
    trainer.compile(
        optimizer=build_optimizer(
            recipe.optimizer,
            schedule,
            decoder,
            mixed=recipe.step.dtype == "mixed_bfloat16",
            parametrization=recipe.parametrization,
        )
    )
    return trainer
