"""What is examined: the run's decoder with its step, and a small batch on which trials are quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.model import cost
from tfgpt.model.config import DecoderConfig
from tfgpt.training.config import ScheduleConfig
from tfgpt.training.objectives.base import TrainingData
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer

Batch = dict[str, np.ndarray]

# Rows and tokens a row of the small batch; fewer where the model is large.
SMALL_ROWS, SMALL_LENGTH, SHORTEST = 4, 128, 16
WARMUP_STEPS = 5
# Of the measured peak, about what a small batch reaches (2 cores).
SMALL_UTILIZATION = 0.25


@dataclasses.dataclass
class ProbeModel:
    """The parts of the run that trials work on; nothing of it is kept.

    Attributes:
        recipe: the run's settings.
        data: what the objective prepared.
        strategy: where the variables live.
        run_trainer: the run's trainer; its weights are as initialized until a trial changes them.
        run_data: the run's batches.
        batch: the first training batch.
        small: a few of its rows, perhaps shortened.
        forward_tokens: how many tokens a forward pass may have to take only a few seconds.
        trainer: another step over the same decoder and optimizer, for the small batch: no accumulation, graph mode.
    """

    recipe: TrainConfig
    data: Any
    strategy: tf.distribute.Strategy
    run_trainer: Trainer
    run_data: TrainingData
    batch: Batch
    small: Batch
    trainer: Trainer
    forward_tokens: int = 1 << 20

    @classmethod
    def build(
        cls,
        recipe: TrainConfig,
        data: Any,
        strategy: tf.distribute.Strategy,
        run_trainer: Trainer,
        run_data: TrainingData,
        batch: Batch,
        small_tokens: int,
        forward_tokens: int = 1 << 20,
    ) -> ProbeModel:
        """Adds the small batch, of about `small_tokens` tokens, and its trainer to the run's."""
        small = small_batch(batch, small_tokens, strategy.num_replicas_in_sync)
        trainer = trainer_of_shape(recipe, strategy, run_trainer, small["token_ids"].shape, "graph")
        return cls(recipe, data, strategy, run_trainer, run_data, batch, small, trainer, forward_tokens)

    @property
    def decoder(self) -> Any:
        """The decoder."""
        return self.trainer.decoder

    @property
    def config(self) -> DecoderConfig:
        """The decoder's shape."""
        return self.decoder.config

    def run(self, function: Callable[[Mapping[str, tf.Tensor]], Any], batch: Mapping[str, np.ndarray]) -> Any:
        """`function(batch)` in one replica's place, in a graph, as NumPy.

        Args:
            function: from a batch of tensors to tensors.
            batch: arrays.
        """
        return self.traced(function)(batch)

    def traced(self, function: Callable[[Mapping[str, tf.Tensor]], Any]) -> Callable[[Mapping[str, np.ndarray]], Any]:
        """`function` as a graph that is traced at the first call, for batches of one shape.

        Every replica is given the whole batch; the first one's answer counts.
        """
        traced = tf.function(lambda batch: self.strategy.run(function, args=(batch,)), autograph=False)
        graphs: list[Any] = []

        def answer(batch: Mapping[str, np.ndarray]) -> Any:
            tensors = {name: tf.constant(array) for name, array in batch.items()}
            if not graphs:
                graphs.append(traced.get_concrete_function(tensors))
            given = graphs[0](tensors)
            return tf.nest.map_structure(
                lambda value: self.strategy.experimental_local_results(value)[0].numpy(), given
            )

        return answer

    def small_batches(self) -> Any:
        """An endless iterator of the small batch, for `trainer.train_steps`."""
        return self.repeated(self.small)

    def repeated(self, batch: Batch) -> Any:
        """An endless iterator of one batch."""
        dataset = tf.data.Dataset.from_tensors(batch).repeat()
        if self.strategy.num_replicas_in_sync > 1:
            return iter(self.strategy.experimental_distribute_dataset(dataset))
        return iter(dataset)

    def small_loss(self) -> Callable[[], float]:
        """A function that measures the plain cross-entropy of the small batch, nats per token, dropout off."""
        traced = self.traced(lambda batch: self.trainer.loss_function(self.decoder, batch, training=False))

        def measure() -> float:
            sums = traced(self.small)
            return float(sums["nll_sum"]) / float(sums["weight_sum"])

        return measure


def trainer_of_shape(
    recipe: TrainConfig, strategy: tf.distribute.Strategy, run_trainer: Trainer, shape: tuple[int, int], mode: str
) -> Trainer:
    """A step over a trainer's decoder and optimizer for batches of another shape, without accumulation."""
    with strategy.scope():
        trainer = Trainer(
            run_trainer.decoder,
            run_trainer.loss_function,
            dataclasses.replace(recipe.step, gradient_accumulation_steps=1, compile=mode),
            dataclasses.replace(recipe.optimizer, ema_decay=0.0),
            seed=recipe.run.seed,
            batch_shape=shape,
        )
        trainer.compile(run_trainer.optimizer)
    return trainer


def at_constant_rate(recipe: TrainConfig) -> TrainConfig:
    """The recipe with its highest learning rate throughout, after a few updates of warm-up: what trials run with."""
    return dataclasses.replace(recipe, schedule=ScheduleConfig(schedule="constant", warmup_steps=WARMUP_STEPS))


def first_batch(dataset: Any) -> Batch:
    """The first element of an iterator of batches, as arrays."""
    return {name: np.asarray(tensor) for name, tensor in next(dataset).items()}


def small_batch(batch: Batch, tokens: int, replicas: int) -> Batch:
    """A part of a batch with about so many tokens: the rows with most targets, equally many for each replica."""
    length = batch["token_ids"].shape[1]
    length = min(length, SMALL_LENGTH, max(SHORTEST, tokens // replicas))
    rows = max(1, min(SMALL_ROWS, tokens // (length * replicas))) * replicas
    weights = batch["weights"][:, :length].sum(axis=1)
    chosen = np.argsort(-weights, kind="stable")[:rows]
    # Fewer rows than replicas cannot be: the step refuses such a batch.
    return {name: np.ascontiguousarray(array[chosen, :length]) for name, array in batch.items()}


def affordable_tokens(config: DecoderConfig, peak_flops: float, steps: int, seconds: float) -> int:
    """Tokens of a batch of which `steps` updates take at most about `seconds`."""
    flops = cost.training_flops_per_token(config, SMALL_LENGTH)
    return max(SHORTEST, int(seconds * SMALL_UTILIZATION * peak_flops / (flops * max(steps, 1))))
