"""The training step: one optimizer update from one global batch, on any number of devices.

Every replica adds up the gradients of its weighted token losses over its micro-batches. One all-reduce sums gradients
and weights over replicas. Every replica then divides by the global weight sum, clips by the global norm, and computes
the same new weights, slots and averages from the same numbers. Nothing after the all-reduce communicates, so XLA can
compile it, and an update that is not finite can be dropped as a whole.

Properties that other modules rely on:

- `optimizer.iterations` counts attempted updates, skipped ones included: batch, dropout masks and learning rate are
  functions of the step number, also after a skip.
- There is no random state: a dropout mask is a function of (seed, step, micro-batch, replica, layer).
- The loss and all other returned numbers are global.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.model.dropout import dropout_seed
from tfgpt.training.config import OptimizerConfig, StepConfig
from tfgpt.training.distribution import replicas
from tfgpt.training.distribution.replicas import assign_local, replica_variable
from tfgpt.training.evaluator import Evaluator, evaluation_logs, with_static_shape

TRAINING_SUMS = ("loss_sum", "nll_sum", "weight_sum")
LAST_STEP_LOGS = ("gradient_norm", "learning_rate", "update_ratio")


class Trainer(keras.Model):
    """A decoder with its loss and optimizer, driven by `train_steps` or by Keras's `fit` and `evaluate`.

    Create it and call `compile(optimizer)` inside the strategy's scope.

    Args:
        loss: from decoder and batch to sums of losses, see `tfgpt.training.losses.CausalLanguageModelingLoss`.
        token_byte_lengths: [V] integers, bytes of each token's text and 0 for special tokens, for bits per byte.
        batch_shape: (rows of the global batch, tokens of a row). Distributed iterators lose it, and XLA needs it.

    Attributes:
        skipped_updates, consecutive_skipped: int64 variables, updates dropped because loss or gradient norm were not
            finite: in total, and in a row up to now.
        averages: moving averages of the weights (empty without `ema_decay`).

    Example:

    >>> from tfgpt.model.config import DecoderConfig
    >>> from tfgpt.model.decoder import Decoder
    >>> from tfgpt.training.losses import CausalLanguageModelingLoss
    >>> from tfgpt.training.optimizers import build_optimizer
    >>> shape = {"vocabulary_size": 8, "num_layers": 1, "hidden_dim": 8, "num_query_heads": 2}
    >>> decoder = Decoder(DecoderConfig(**shape, max_sequence_length=4))
    >>> trainer = Trainer(decoder, CausalLanguageModelingLoss(), StepConfig(), OptimizerConfig(), seed=0)
    >>> trainer.compile(build_optimizer(OptimizerConfig(), 0.01, decoder))
    >>> ids = tf.zeros([1, 4], "int32")
    >>> batch = {"token_ids": ids, "targets": ids, "weights": tf.ones([1, 4])}
    >>> trainer.train_steps(iter(tf.data.Dataset.from_tensors(batch)), 1)["tokens"]
    4.0
    """

    def __init__(
        self,
        decoder: keras.Model,
        loss: Any,
        step_config: StepConfig,
        optimizer_config: OptimizerConfig,
        *,
        seed: int,
        token_byte_lengths: np.ndarray | None = None,
        batch_shape: tuple[int, int] | None = None,
    ):
        super().__init__(name="trainer")
        self.decoder, self.loss_function = decoder, loss
        self.step_config, self.optimizer_config = step_config, optimizer_config
        self.seed, self.batch_shape = seed, batch_shape
        self.evaluator = Evaluator(decoder, loss, token_byte_lengths=token_byte_lengths, batch_shape=batch_shape)
        self.functions = self.evaluator.functions
        self.use_mode("xla" if step_config.compile == "xla" else "graph")
        self.skipped_updates, self.consecutive_skipped = (
            keras.Variable(0, dtype="int64", trainable=False, name=name, aggregation="only_first_replica")
            for name in ("skipped_updates", "consecutive_skipped")
        )
        self.averages = []
        if optimizer_config.ema_decay:
            self.averages = [
                keras.Variable(tf.identity(variable.value), trainable=False, name=f"{variable.name}_average")
                for variable in decoder.trainable_variables
            ]
        self.training_sums = (*TRAINING_SUMS, *loss.means)
        self.running_sums = np.zeros(0)
        self.built = True

    def train_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs one update, given this replica's part of the batch.

        Args:
            batch: `token_ids`, `targets` [B, T] int32, `weights` [B, T] float32, and the inputs of a packed decoder.

        Returns:
            float32 scalars, equal on all replicas: the loss function's sums, `skipped` (1 when the update was dropped,
            whose sums are 0, else 0), `gradient_norm` before clipping, `learning_rate`, and `update_ratio`, the norm
            of the change of all weights over the norm of the weights.
        """
        batch = with_static_shape(batch, self.batch_shape)
        xla = self.functions.mode == "xla"
        if xla and not replicas.replicated():
            return self.functions.compiled(self.single_device_step)(batch)
        # 1. Gradients of this replica's loss sum.
        gradients, sums = self.functions.compiled(self.gradients, xla)(batch)
        # 2. All-reduce.
        gradients, sums = replicas.all_reduce_sum(gradients, sums)
        # 3. Clip, 4. update, 5. average: compiled together.
        return self.functions.compiled(self.update)(gradients, sums, tf.linalg.global_norm(gradients))

    def single_device_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        gradients, sums = self.gradients(batch)
        return self.update(gradients, sums, tf.linalg.global_norm(gradients))

    def gradients(self, batch: Mapping[str, tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the float32 gradients of this replica's `loss_sum`, and its sums, over all micro-batches."""
        steps = self.step_config.gradient_accumulation_steps
        if steps == 1:
            return self.micro_batch_gradients(batch, 0)
        rows = batch["token_ids"].shape[0]
        if rows is None or rows % steps:
            raise UserError(
                f"--gradient_accumulation_steps: {steps} does not divide the {rows} rows of a replica's batch"
            )
        parts = {name: tf.reshape(value, [steps, rows // steps, *value.shape[1:]]) for name, value in batch.items()}

        def body(index, gradients, sums):
            more, addends = self.micro_batch_gradients({name: part[index] for name, part in parts.items()}, index)
            gradients = [gradient + addend for gradient, addend in zip(gradients, more)]
            return index + 1, gradients, {name: sums[name] + addends[name] for name in sums}

        start = (
            0,
            [tf.zeros(variable.shape, tf.float32) for variable in self.decoder.trainable_variables],
            {name: tf.zeros(()) for name in self.training_sums},
        )
        _, gradients, sums = tf.while_loop(
            lambda index, *_: index < steps, body, start, parallel_iterations=1, maximum_iterations=steps
        )
        return gradients, sums

    def micro_batch_gradients(self, batch, index):
        variables = [variable.value for variable in self.decoder.trainable_variables]
        with self.dropout(index), tf.GradientTape() as tape:
            sums = self.loss_function(self.decoder, batch, training=True)
        gradients = tape.gradient(sums["loss_sum"], variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        sums = {name: sums[name] for name in self.training_sums}
        # The gradient of an embedding is a `tf.IndexedSlices`; the rest of the step needs dense tensors.
        return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in gradients], sums

    def dropout(self, index: tf.Tensor | int) -> contextlib.AbstractContextManager:
        """Returns the context that seeds dropout for this step, micro-batch and replica."""
        if not (self.decoder.config.dropout or self.decoder.lora_dropout):
            return contextlib.nullcontext()
        seed = tf.constant([self.seed & 0x7FFFFFFF, (self.seed >> 31) & 0x7FFFFFFF])
        for number in (self.optimizer.iterations.value, index, replicas.replica_id()):
            seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int32), alg="philox")
        return dropout_seed(seed)

    def update(
        self, gradients: list[tf.Tensor], sums: dict[str, tf.Tensor], norm_of_sums: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Clips, updates and averages; every replica computes the same from the same numbers."""
        # 3. Clip the mean gradient by its global norm.
        scale = tf.math.divide_no_nan(1.0, sums["weight_sum"])
        norm = norm_of_sums * scale
        finite = tf.math.is_finite(norm) & tf.math.is_finite(sums["loss_sum"])
        max_grad_norm = self.optimizer_config.max_grad_norm
        if max_grad_norm:
            scale *= max_grad_norm / tf.maximum(norm, max_grad_norm)
        # 4. Compute new weights and optimizer slots.
        optimizer = self.optimizer
        weights = [replica_variable(variable) for variable in self.decoder.trainable_variables]
        slots = [replica_variable(variable) for variable in optimizer.variables]
        learning_rate = tf.convert_to_tensor(optimizer.learning_rate)
        old_weights = [weight.read_value() for weight in weights]
        new_weights, new_slots = optimizer.stateless_apply(
            [slot.read_value() for slot in slots], [gradient * scale for gradient in gradients], old_weights
        )
        change = tf.linalg.global_norm([new - old for new, old in zip(new_weights, old_weights)])
        update_ratio = tf.math.divide_no_nan(change, tf.linalg.global_norm(old_weights))
        updated = [*zip(weights, new_weights), *zip(slots, new_slots)]
        # 5. Average the weights.
        if self.averages:
            keep = average_decay(self.optimizer_config.ema_decay, optimizer.iterations)
            averages = [replica_variable(average) for average in self.averages]
            updated += [(old, old + (1.0 - keep) * (new - old)) for old, new in zip(averages, new_weights)]
        # Assign all of it, or nothing but the counters when the update is not finite.
        iterations = replica_variable(optimizer.iterations)
        step = iterations.read_value()
        for variable, new in updated:
            if variable is not iterations:
                assign_local(variable, tf.where(finite, new, variable.read_value()))
        assign_local(iterations, step + 1)
        skipped, consecutive = replica_variable(self.skipped_updates), replica_variable(self.consecutive_skipped)
        dropped = tf.cast(~finite, tf.int64)
        assign_local(skipped, skipped + dropped)
        assign_local(consecutive, (consecutive + 1) * dropped)
        return {
            **{name: tf.where(finite, value, 0.0) for name, value in sums.items()},
            "skipped": tf.cast(~finite, tf.float32),
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "update_ratio": tf.where(finite, update_ratio, 0.0),
        }

    def train_steps(self, iterator: Any, count: int | tf.Tensor) -> dict[str, float]:
        """Runs `count` updates without returning to Python; another count does not trace again.

        Args:
            iterator: of a dataset, distributed when the strategy has several replicas. At its end
                `tf.errors.OutOfRangeError` is raised; the updates before it are done.
            count: at least 1.

        Returns:
            `loss` and `nll_per_token`, weighted means over the call's finite updates; `tokens`, their weight;
            `skipped`, the dropped updates; and `gradient_norm`, `learning_rate` and `update_ratio` of the last update.
        """
        return training_logs(*self.run_updates(iterator, count), self.loss_function.means)

    def run_updates(self, iterator: Any, count: int | tf.Tensor) -> tuple[np.ndarray, dict[str, float]]:
        totals, last = self.functions.loop(self.train_loop)(iterator, tf.cast(count, tf.int64))
        return totals.numpy(), dict(zip(LAST_STEP_LOGS, last.numpy().tolist()))

    def train_loop(self, iterator: Any, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns float64 sums over the updates (`training_sums`, dropped updates) and `LAST_STEP_LOGS` [3]."""
        names = (*self.training_sums, "skipped")
        return replicas.run_steps(self.distribute_strategy, self.train_step, iterator, count, names, LAST_STEP_LOGS)

    # Compilation, Keras's fit and evaluate.

    def use_mode(self, mode: str) -> None:
        """Sets how the step runs: "graph" (TensorFlow's kernels, the update itself fused by XLA) or "xla"."""
        self.functions.mode = mode
        self.train_function: Any = None
        self.test_function: Any = None

    def compile(self, optimizer: keras.optimizers.Optimizer, steps_per_execution: int = 1, **options: Any) -> None:
        super().compile(optimizer=optimizer, steps_per_execution=steps_per_execution, jit_compile=False, **options)

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        return self.decoder(inputs, training=training)

    def make_train_function(self, force: bool = False) -> None:
        """Sets `train_function` for `fit`: `steps_per_execution` updates; `loss` is the mean over the epoch."""

        def train_function(iterator: Any) -> dict[str, float]:
            totals, last = self.run_updates(iterator, self.steps_per_execution)
            self.running_sums = self.running_sums + totals if self.running_sums.size else totals
            return training_logs(self.running_sums, last, self.loss_function.means)

        self.train_function = train_function

    def make_test_function(self, force: bool = False) -> None:
        """Sets `test_function` for `evaluate`: exact metrics over the batches so far."""

        def test_function(iterator: Any) -> dict[str, float]:
            sums = self.evaluator.sums(iterator, 1)
            self.running_sums = self.running_sums + sums if self.running_sums.size else sums
            return evaluation_logs(self.running_sums, self.loss_function.means)

        self.test_function = test_function

    def reset_metrics(self) -> None:
        self.running_sums = np.zeros(0)

    # State.

    @property
    def learning_rate_scale(self) -> keras.Variable:
        return self.optimizer.learning_rate_scale

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Replaces the decoder's weights by their moving averages inside the block, if there is an `ema_decay`."""
        self.swap_averages()
        try:
            yield
        finally:
            self.swap_averages()

    def swap_averages(self) -> None:
        for variable, average in zip(self.decoder.trainable_variables, self.averages):
            value = tf.identity(variable.value)
            variable.assign(average.value)
            average.assign(value)

    def state_variables(self) -> dict[str, keras.Variable]:
        """Returns every variable that a restart needs, by a name that is the same in every process."""
        trainable = self.decoder.trainable_variables
        state = {f"weights/{variable.path}": variable for variable in trainable}
        state |= {f"averages/{variable.path}": average for variable, average in zip(trainable, self.averages)}
        prefix, times = f"{self.optimizer.name}/", collections.Counter[str]()
        for variable in self.optimizer.variables:
            name = f"optimizer/{variable.path.removeprefix(prefix)}"
            # Adafactor gives several slots of one weight the same name.
            state[f"{name}#{times[name]}" if times[name] else name] = variable
            times[name] += 1
        state["counters/skipped_updates"] = self.skipped_updates
        state["counters/consecutive_skipped"] = self.consecutive_skipped
        return state


def average_decay(decay: float, step: Any) -> tf.Tensor:
    """Returns `min(decay, (1 + step) / (10 + step))`, as `tf.train.ExponentialMovingAverage` with `num_updates`.

    The random initial weights leave the average sooner than with a constant decay.
    """
    step = tf.cast(step, tf.float32)
    return tf.minimum(decay, (1.0 + step) / (10.0 + step))


def training_logs(totals: np.ndarray, last: dict[str, float], means: tuple[str, ...] = ()) -> dict[str, float]:
    """Returns means, given the sums of loss, NLL, weight, `means` and dropped updates, and `last` as it is."""
    loss, nll, weight, *objective_sums, skipped = totals.tolist()
    divisor = weight or float("nan")
    logs = {"loss": loss / divisor, "nll_per_token": nll / divisor, "tokens": weight, "skipped": skipped}
    return {**logs, **{name: total / divisor for name, total in zip(means, objective_sums)}, **last}
