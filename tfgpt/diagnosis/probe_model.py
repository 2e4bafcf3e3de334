"""The model under test: the run's decoder and training step, with a small batch for quick trials."""

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

# Rows and tokens per row of the small batch; fewer for large models.
SMALL_ROWS, SMALL_LENGTH, MIN_LENGTH = 4, 128, 16
WARMUP_STEPS = 5
# Share of the measured peak FLOP/s that a small batch reaches, approximately (2 cores).
SMALL_UTILIZATION = 0.25


class ProbeModel:
    """The parts of a run that are tested; its weights change during the trials and are not saved.

    Args:
        batch: the first training batch.
        small_tokens: size of the small batch, approximately.
        forward_tokens: number of tokens whose forward pass takes only a few seconds.

    Attributes:
        small: a few rows of `batch`, perhaps truncated.
        trainer: a second training step for the small batch, with the same decoder and optimizer.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Any,
        strategy: tf.distribute.Strategy,
        run_trainer: Trainer,
        run_data: TrainingData,
        batch: Batch,
        small_tokens: int,
        forward_tokens: int = 1 << 20,
    ):
        self.config, self.data, self.strategy = config, data, strategy
        self.run_trainer, self.run_data = run_trainer, run_data
        self.batch, self.forward_tokens = batch, forward_tokens
        # The rows with most targets, equally many for each replica.
        replicas = strategy.num_replicas_in_sync
        length = min(batch["token_ids"].shape[1], SMALL_LENGTH, max(MIN_LENGTH, small_tokens // replicas))
        rows = max(1, min(SMALL_ROWS, small_tokens // (length * replicas))) * replicas
        chosen = np.argsort(-batch["weights"][:, :length].sum(axis=1), kind="stable")[:rows]
        self.small = {name: np.ascontiguousarray(array[chosen, :length]) for name, array in batch.items()}
        self.trainer = self.trainer_of_shape(self.small["token_ids"].shape, "graph")
        self.decoder, self.decoder_config = self.trainer.decoder, self.trainer.decoder.config
        self.flops_per_token = cost.training_flops_per_token(self.decoder_config, config.batch.sequence_length)
        self.tokens_per_update = config.batch.batch_size * config.batch.sequence_length
        self.loss_sums = self.traced(lambda batch: self.trainer.loss_function(self.decoder, batch, training=False))

    def trainer_of_shape(self, shape: tuple[int, int], mode: str) -> Trainer:
        """Returns a training step for batches of another shape, without accumulation and averages."""
        with self.strategy.scope():
            trainer = Trainer(
                self.run_trainer.decoder,
                self.run_trainer.loss_function,
                dataclasses.replace(self.config.step, gradient_accumulation_steps=1, compile=mode),
                dataclasses.replace(self.config.optimizer, ema_decay=0.0),
                seed=self.config.run.seed,
                batch_shape=shape,
            )
            trainer.compile(self.run_trainer.optimizer)
        return trainer

    def traced(self, function: Callable[[Mapping[str, tf.Tensor]], Any]) -> Callable[[Mapping[str, np.ndarray]], Any]:
        # Every replica computes the same.
        graph = tf.function(lambda batch: self.strategy.run(function, args=(batch,)), autograph=False)

        def call(batch: Mapping[str, np.ndarray]) -> Any:
            results = graph({name: tf.constant(array) for name, array in batch.items()})
            return tf.nest.map_structure(
                lambda value: self.strategy.experimental_local_results(value)[0].numpy(), results
            )

        return call

    def loss(self, batch: Batch) -> float:
        """Returns the mean cross-entropy of a batch in nats per token, without dropout."""
        sums = self.loss_sums(batch)
        return float(sums["nll_sum"]) / float(sums["weight_sum"])

    def decoder_inputs(self, batch: Batch) -> Batch:
        names = ("token_ids", "positions", "segment_ids") if self.decoder.packed else ("token_ids",)
        return {name: batch[name] for name in names}

    def repeat(self, batch: Batch) -> Any:
        dataset = tf.data.Dataset.from_tensors(batch).repeat()
        if self.strategy.num_replicas_in_sync > 1:
            return iter(self.strategy.experimental_distribute_dataset(dataset))
        return iter(dataset)


def with_constant_rate(config: TrainConfig) -> TrainConfig:
    """Returns the configuration of trials: the highest learning rate after a short warm-up."""
    return dataclasses.replace(config, schedule=ScheduleConfig(schedule="constant", warmup_steps=WARMUP_STEPS))


def affordable_tokens(config: DecoderConfig, peak_flops: float, steps: int, seconds: float) -> int:
    """Returns the batch size in tokens with which `steps` updates take at most about `seconds`."""
    flops = cost.training_flops_per_token(config, SMALL_LENGTH)
    return max(MIN_LENGTH, int(seconds * SMALL_UTILIZATION * peak_flops / (flops * max(steps, 1))))
