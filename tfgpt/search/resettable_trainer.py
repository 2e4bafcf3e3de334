"""A trainer that begins again and again: what the coordinate check and the transfer sweep train with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.pipeline.prepare import PreparedData
from tfgpt.training.compilation import choose_compilation
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer_and_data


class ResettableTrainer:
    """A trainer that can begin again with other settings of the learning rate, without being traced again.

    Args:
        recipe: what is trained; its --learning_rate is replaced at each beginning.
        data: tokenizer and shards.
    """

    def __init__(self, recipe: TrainConfig, data: PreparedData):
        one = dataclasses.replace(recipe.optimizer, learning_rate=1.0, adam_learning_rate=self.ratio(recipe))
        self.recipe = dataclasses.replace(recipe, optimizer=one)
        self.trainer, self.data = build_trainer_and_data(self.recipe, data, tf.distribute.get_strategy())
        choose_compilation(self.trainer, self.data.batches, recipe.step.compile, log=lambda line: None)
        self.state = {name: variable.numpy() for name, variable in self.trainer.state_variables().items()}

    @staticmethod
    def ratio(recipe: TrainConfig) -> float | None:
        """--adam_learning_rate for a --learning_rate of 1."""
        adam = recipe.optimizer.adam_learning_rate
        return None if adam is None else adam / recipe.optimizer.learning_rate

    def begin(self, learning_rate: float) -> Iterator[Any]:
        """Back to the initial weights; returns the batches from the first on."""
        for name, variable in self.trainer.state_variables().items():
            variable.assign(self.state[name])
        self.trainer.learning_rate_scale.assign(learning_rate)
        return self.data.batches(0)

    def validation_loss(self) -> float:
        """Nats per token over the whole held-out set."""
        validation = self.data.validation
        numbers = self.trainer.evaluator.evaluate(validation.dataset, validation.steps)
        return float(numbers["loss"])

    def first_batch(self) -> dict[str, np.ndarray]:
        """The first batch of training."""
        return {name: value.numpy() for name, value in next(self.data.batches(0)).items()}
