"""Builds the trainer of a run: decoder, loss function, optimizer and step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.model.checkpoints.huggingface import load_weights
from tfgpt.model.decoder import Decoder
from tfgpt.model.lora import enable_lora
from tfgpt.training.distribution.strategy import check_batch
from tfgpt.training.objectives.base import Objective, TrainingData, get_objective
from tfgpt.training.optimizers import build_optimizer
from tfgpt.training.schedules import build_schedule
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer


def build_trainer(
    recipe: TrainConfig,
    vocabulary_size: int,
    token_byte_lengths: np.ndarray | None = None,
    objective: Objective | None = None,
) -> Trainer:
    """Builds decoder, loss function and optimizer, with all variables. Call it in the strategy's scope."""
    objective = objective or get_objective(recipe.objective.objective)
    packed = recipe.batch.document_masking if objective.segments is None else objective.segments
    decoder = Decoder(recipe.decoder_config(vocabulary_size), packed=packed, dtype=recipe.step.dtype)
    if recipe.run.init_from is not None:
        load_weights(decoder, recipe.initial_model)
    if recipe.lora.lora_rank:
        enable_lora(decoder, recipe.lora)
    trainer = Trainer(
        decoder,
        objective.loss(recipe),
        recipe.step,
        recipe.optimizer,
        seed=recipe.run.seed,
        token_byte_lengths=token_byte_lengths,
        batch_shape=(objective.rows(recipe), recipe.batch.sequence_length),
    )
    schedule = build_schedule(recipe.schedule, recipe.optimizer.learning_rate, recipe.run.max_steps)
    mixed = recipe.step.dtype == "mixed_bfloat16"
    trainer.compile(build_optimizer(recipe.optimizer, schedule, decoder, mixed, recipe.parametrization))
    return trainer


def build_trainer_and_data(
    recipe: TrainConfig, data: Any, strategy: tf.distribute.Strategy, objective: Objective | None = None
) -> tuple[Trainer, TrainingData]:
    """Builds the trainer inside the strategy's scope, and the batches that it reads.

    `data` is the result of `prepare` of the objective (None: a new one). Raises UserError if the settings do not fit
    the data, the devices or the model of --init_from.
    """
    check_batch(recipe.batch.batch_size, recipe.step.gradient_accumulation_steps, strategy)
    keras.utils.set_random_seed(recipe.run.seed)
    objective = objective or get_objective(recipe.objective.objective)
    with strategy.scope():
        trainer = build_trainer(recipe, data.tokenizer.vocabulary_size, data.tokenizer.byte_lengths(), objective)
    return trainer, objective.build_data(recipe, data, strategy, trainer)
