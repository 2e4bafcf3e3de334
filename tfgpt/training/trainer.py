"""The training step: one optimizer update from one global batch, right on any number of devices.

One update is: every replica adds up the gradients of its weighted token losses over its micro-batches; one all-reduce
sums gradients and weights over replicas; everybody divides by the global weight sum, clips by the global norm, and
computes the same new weights, slots and averages from the same numbers. Nothing after the all-reduce communicates, so
it can be compiled, and an update that is not finite can be dropped whole.

Facts that others rely on:

- `optimizer.iterations` counts updates tried, skipped ones included: batch, dropout masks and learning rate of a step
  stay pure functions of its number, also after a skip.
- There is no random state: a dropout mask is a function of (seed, step, micro-batch, replica, layer).
- Loss and other numbers returned are global already.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.model.dropout import dropout_seed
from tfgpt.training.config import OptimizerConfig, StepConfig
from tfgpt.training.losses import CausalLanguageModelingLoss

TRAINING_SUMS = ("loss_sum", "nats_sum", "weight_sum")
EVALUATION_SUMS = (*TRAINING_SUMS, "correct_sum", "bytes_sum", "text_nats_sum")
LAST_STEP_LOGS = ("gradient_norm", "learning_rate", "update_ratio")


class Trainer(keras.Model):
    """A decoder with its objective and optimizer: driven by `fit` and `evaluate`, or by `train_steps`.

    Make it, and call `compile(optimizer)`, inside the strategy's scope.

    Args:
        decoder: the model that learns.
        objective: from decoder and batch to sums of losses.
        step_config: accumulation and compilation.
        optimizer_config: clipping and averaging of weights.
        seed: of dropout.
        token_byte_lengths: [V] integers, bytes of each token's text and 0 for special tokens, for bits per byte.
        batch_shape: (rows of the global batch, tokens of a row); distributed iterators lose it, and XLA needs it.

    Attributes:
        mode: "graph" or "xla", see `use_mode`.
        training_sums, evaluation_sums_names: what is added up in training and in evaluation.
        skipped_updates, consecutive_skipped: int64 variables, updates dropped because loss or gradient norm were not
            finite: in all, and in a row up to now.
        averages: moving averages of the weights (empty without `ema_decay`).
    """

    def __init__(
        self,
        decoder: keras.Model,
        objective: CausalLanguageModelingLoss,
        step_config: StepConfig,
        optimizer_config: OptimizerConfig,
        *,
        seed: int,
        token_byte_lengths: np.ndarray | None = None,
        batch_shape: tuple[int, int] | None = None,
    ):
        super().__init__(name="trainer")
        self.decoder = decoder
        self.objective = objective
        self.step_config = step_config
        self.optimizer_config = optimizer_config
        self.seed = seed
        self.batch_shape = batch_shape
        self.token_byte_lengths = np.zeros(0, np.int32) if token_byte_lengths is None else token_byte_lengths
        self.mode = "xla" if step_config.compile == "xla" else "graph"
        self.compiled_parts: dict[tuple, Callable] = {}
        self.loops: dict[tuple, Callable] = {}
        self.skipped_updates = counter("skipped_updates")
        self.consecutive_skipped = counter("consecutive_skipped")
        self.averages = []
        if optimizer_config.ema_decay:
            self.averages = [
                keras.Variable(tf.identity(variable.value), trainable=False, name=f"{variable.name}_average")
                for variable in decoder.trainable_variables
            ]
        self.training_sums = (*TRAINING_SUMS, *objective.means)
        self.evaluation_sums_names = (*EVALUATION_SUMS, *objective.means)
        self.running = np.zeros(len(self.evaluation_sums_names))
        self.train_function: Any = None
        self.test_function: Any = None
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """The decoder's logits."""
        return self.decoder(inputs, training=training)

    def compile(self, optimizer: keras.optimizers.Optimizer, steps_per_execution: int = 1, **options: Any) -> None:
        """Sets the optimizer (from `tfgpt.training.optimizers`) and the updates `fit` makes in one call."""
        super().compile(optimizer=optimizer, steps_per_execution=steps_per_execution, jit_compile=False, **options)

    @property
    def learning_rate_scale(self) -> keras.Variable:
        """Factor on the schedule; assign to it to lower the rest of the run's learning rate."""
        return self.optimizer.learning_rate_scale

    def use_mode(self, mode: str) -> None:
        """Sets how the step runs: "graph" (TensorFlow's kernels, the update itself fused by XLA) or "xla"."""
        self.mode = mode
        self.train_function = self.test_function = None

    def forget_other_modes(self) -> None:
        """Frees what was traced and compiled for another mode than the current one."""
        for made in (self.compiled_parts, self.loops):
            for key in [key for key in made if key[1] != self.mode]:
                del made[key]

    # One update, as one replica sees it.

    def train_step(self, batch: Mapping[str, tf.Tensor], measure: tf.Tensor | bool = False) -> dict[str, tf.Tensor]:
        """One update from this replica's part of the batch.

        Args:
            batch: `token_ids`, `targets` [B, T] int32, `weights` [B, T] float32, and what a packed decoder needs.
            measure: scalar bool, whether to compute `update_ratio` (else 0).

        Returns:
            float32 scalars, equal on all replicas: the objective's sums, `finite` (1, or 0 when the update was
            dropped), `gradient_norm` before clipping, `learning_rate`, and `update_ratio`, the norm of the change of
            all weights over the norm of the weights.
        """
        batch = self.with_static_shape(batch)
        weights = [local(variable) for variable in self.decoder.trainable_variables]
        if on_tpu():
            # One XLA program: the branches of a condition must agree in shape there, and the values are at hand anyway.
            before = [weight.read_value() for weight in weights]
        else:
            before = tf.cond(
                measure,
                lambda: [weight.read_value() for weight in weights],
                lambda: [tf.zeros([0] * len(weight.shape), weight.dtype) for weight in weights],
            )
        if self.mode == "xla" and not replicated():
            logs = self.part("step", self.undistributed_step, compiled=True)(batch)
        else:
            gradients, sums = self.part("gradients", self.gradients, compiled=self.mode == "xla")(batch)
            gradients, sums = summed_over_replicas(gradients, sums)
            norm = tf.linalg.global_norm(gradients)
            logs = self.part("update", self.update, compiled=True)(gradients, sums, norm)
        with tf.control_dependencies([logs["finite"]]):
            if on_tpu():
                ratio = tf.where(measure, relative_change(before, weights), 0.0)
            else:
                ratio = tf.cond(measure, lambda: relative_change(before, weights), lambda: tf.zeros(()))
        return {**logs, "update_ratio": ratio}

    def undistributed_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The whole update on one device, for XLA to compile in one piece."""
        gradients, sums = self.gradients(batch)
        return self.update(gradients, sums, tf.linalg.global_norm(gradients))

    def gradients(self, batch: Mapping[str, tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """This replica's sums and the gradients of its `loss_sum`, float32, over all micro-batches."""
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
        """`gradients` of one micro-batch, the `index`-th."""
        variables = [variable.value for variable in self.decoder.trainable_variables]
        with self.dropout(index), tf.GradientTape() as tape:
            sums = self.objective(self.decoder, batch, training=True)
        gradients = tape.gradient(sums["loss_sum"], variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        sums = {name: sums[name] for name in self.training_sums}
        # The gradient of an embedding comes as slices; all-reduce, norm and optimizer want it whole.
        return [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in gradients], sums

    def dropout(self, index: tf.Tensor | int) -> contextlib.AbstractContextManager:
        """The context that seeds dropout for this step, micro-batch and replica."""
        if not (self.decoder.config.dropout or self.decoder.lora_dropout):
            return contextlib.nullcontext()
        seed = tf.constant([self.seed & 0x7FFFFFFF, (self.seed >> 31) & 0x7FFFFFFF])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for number in (self.optimizer.iterations.value, index, replica):
            seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int32), alg="philox")
        return dropout_seed(seed)

    def update(
        self, gradients: list[tf.Tensor], sums: dict[str, tf.Tensor], norm_of_sums: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Clips, updates, averages and counts; every replica does the same with the same numbers."""
        inverse = tf.math.divide_no_nan(1.0, sums["weight_sum"])
        norm = norm_of_sums * inverse
        finite = tf.math.is_finite(norm) & tf.math.is_finite(sums["loss_sum"])
        factor = inverse
        if self.optimizer_config.max_grad_norm:
            max_grad_norm = self.optimizer_config.max_grad_norm
            factor *= max_grad_norm / tf.maximum(norm, max_grad_norm)
        optimizer = self.optimizer
        weights = [local(variable) for variable in self.decoder.trainable_variables]
        slots = [local(variable) for variable in optimizer.variables]
        learning_rate = tf.convert_to_tensor(optimizer.learning_rate)
        new_weights, new_slots = optimizer.stateless_apply(
            [slot.read_value() for slot in slots],
            [gradient * factor for gradient in gradients],
            [weight.read_value() for weight in weights],
        )
        changed = [*zip(weights, new_weights), *zip(slots, new_slots)]
        if self.averages:
            keep = average_decay(self.optimizer_config.ema_decay, optimizer.iterations)
            averages = [local(average) for average in self.averages]
            changed += [(old, old + (1.0 - keep) * (new - old)) for old, new in zip(averages, new_weights)]
        iterations = local(optimizer.iterations)
        step = iterations.read_value()
        for variable, new in changed:
            if variable is not iterations:
                assign(variable, tf.where(finite, new, variable.read_value()))
        assign(iterations, step + 1)
        skipped, in_a_row = local(self.skipped_updates), local(self.consecutive_skipped)
        dropped = tf.cast(~finite, tf.int64)
        assign(skipped, skipped + dropped)
        assign(in_a_row, (in_a_row + 1) * dropped)
        return {**sums, "finite": tf.cast(finite, tf.float32), "gradient_norm": norm, "learning_rate": learning_rate}

    def test_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The objective's sums over the global batch, nothing updated."""
        if on_tpu():
            # Its compiler must know all shapes.
            batch = self.with_static_shape(batch)
        sums = self.part("evaluation", self.evaluation_sums, compiled=self.mode == "xla")(batch)
        return summed_over_replicas([], sums)[1]

    def evaluation_sums(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The objective's sums over this replica's part."""
        lengths = tf.constant(self.token_byte_lengths) if len(self.token_byte_lengths) else None
        sums = self.objective(self.decoder, batch, training=False, token_byte_lengths=lengths)
        return {name: sums.get(name, tf.zeros(())) for name in self.evaluation_sums_names}

    def part(self, name: str, function: Callable, compiled: bool) -> Callable:
        """`function`, compiled by XLA or not; each replica has its own, bound to its own copy of the variables.

        On TPUs nothing is compiled apart: what `strategy.run` is given is one XLA program already.
        """
        if not compiled or on_tpu():
            return function
        replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
        key = (name, self.mode, int(replica))
        if key not in self.compiled_parts:
            self.compiled_parts[key] = tf.function(function, jit_compile=True, autograph=False)
        return self.compiled_parts[key]

    def with_static_shape(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The batch with its shape known while tracing."""
        if self.batch_shape is None:
            return dict(batch)
        rows, length = self.batch_shape
        replicas = self.distribute_strategy.num_replicas_in_sync
        if rows % replicas:
            raise UserError(f"--batch_size: {rows} rows cannot be shared by {replicas} replicas; use a multiple")
        shape = [rows // replicas, length]
        return {name: tf.ensure_shape(value, shape[: len(value.shape)]) for name, value in batch.items()}

    # Many updates, as the host sees them.

    def train_steps(self, iterator: Any, count: int | tf.Tensor) -> dict[str, tf.Tensor]:
        """`count` updates without returning to Python; other counts do not trace again.

        Args:
            iterator: of a dataset, distributed when the strategy has several replicas. Running out of data raises
                `tf.errors.OutOfRangeError`; the updates before it are done.
            count: how many, at least 1.

        Returns:
            Scalars: `loss` and `nats_per_token`, weighted means over the call's finite updates; `tokens`, their
            weight; `skipped`, updates dropped; and of the last update `gradient_norm`, `learning_rate`,
            `update_ratio`.
        """
        totals, last = self.loop("train", self.train_loop)(iterator, tf.cast(count, tf.int64))
        return training_logs(totals.numpy(), dict(zip(LAST_STEP_LOGS, last.numpy().tolist())), self.objective.means)

    def train_loop(self, iterator: Any, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The sums over the updates ([4] float64: the objective's and the dropped) and the last one's figures [3]."""
        strategy = self.distribute_strategy

        def body(index, totals, _):
            logs = strategy.run(self.train_step, args=(next(iterator), tf.equal(index + 1, count)))
            logs = {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}
            finite = logs["finite"] > 0
            sums = tf.stack([tf.where(finite, logs[name], 0.0) for name in self.training_sums] + [1.0 - logs["finite"]])
            return index + 1, totals + tf.cast(sums, tf.float64), tf.stack([logs[name] for name in LAST_STEP_LOGS])

        start = (
            tf.zeros((), tf.int64),
            tf.zeros(len(self.training_sums) + 1, tf.float64),
            tf.zeros(len(LAST_STEP_LOGS)),
        )
        return tf.while_loop(lambda index, *_: index < count, body, start, parallel_iterations=1)[1:]

    def test_steps(self, iterator: Any, count: int | tf.Tensor) -> np.ndarray:
        """The objective's sums, in the order of `EVALUATION_SUMS`, over `count` batches, [6] float64."""
        return self.loop("test", self.test_loop)(iterator, tf.cast(count, tf.int64)).numpy()

    def test_loop(self, iterator: Any, count: tf.Tensor) -> tf.Tensor:
        """`test_steps` in the graph."""
        strategy = self.distribute_strategy

        def body(index, totals):
            sums = strategy.run(self.test_step, args=(next(iterator),))
            sums = tf.stack([strategy.experimental_local_results(sums[name])[0] for name in self.evaluation_sums_names])
            return index + 1, totals + tf.cast(sums, tf.float64)

        start = (tf.zeros((), tf.int64), tf.zeros(len(self.evaluation_sums_names), tf.float64))
        return tf.while_loop(lambda index, *_: index < count, body, start, parallel_iterations=1)[1]

    def loop(self, name: str, function: Callable) -> Callable:
        """`function` as a `tf.function` of this mode, made once."""
        key = (name, self.mode)
        if key not in self.loops:
            self.loops[key] = tf.function(function, autograph=False, reduce_retracing=True)
        return self.loops[key]

    def evaluate_dataset(self, dataset: Any, batches: int | None = None) -> dict[str, float]:
        """Exact figures over a whole finite dataset, each token counted by its weight.

        Args:
            dataset: a `tf.data.Dataset` of global batches, or one distributed by the strategy.
            batches: the global batches of a distributed one.

        Returns:
            `loss` in nats per token (no smoothing, no z-loss), `bits_per_byte` (only with `token_byte_lengths`),
            `accuracy` of the first guess, `tokens`.

        Raises:
            UserError: the dataset holds no token.
        """
        if batches is None:
            batches = int(dataset.cardinality())
            if self.distribute_strategy.num_replicas_in_sync > 1:
                dataset = self.distribute_strategy.experimental_distribute_dataset(dataset)
        iterator = iter(dataset)
        totals = np.zeros(len(self.evaluation_sums_names))
        if batches >= 0:
            totals = self.test_steps(iterator, batches)
        else:
            with contextlib.suppress(tf.errors.OutOfRangeError):
                while True:
                    totals = totals + self.test_steps(iterator, 1)
        logs = evaluation_logs(totals, self.objective.means)
        if not logs["tokens"]:
            raise UserError("validation: there is no token to predict; give more text")
        return logs

    # What Keras's fit and evaluate call.

    def make_train_function(self, force: bool = False) -> None:
        """For `fit`: `steps_per_execution` updates a call; `loss` is the mean since the epoch's beginning."""

        def train_function(iterator: Any) -> dict[str, float]:
            totals, last = self.loop("train", self.train_loop)(iterator, tf.cast(self.steps_per_execution, tf.int64))
            self.running[: len(totals)] += totals.numpy()
            return training_logs(
                self.running[: len(totals)], dict(zip(LAST_STEP_LOGS, last.numpy().tolist())), self.objective.means
            )

        self.train_function = train_function

    def make_test_function(self, force: bool = False) -> None:
        """For `evaluate`: exact figures over the batches so far."""

        def test_function(iterator: Any) -> dict[str, float]:
            self.running += self.test_steps(iterator, 1)
            return evaluation_logs(self.running, self.objective.means)

        self.test_function = test_function

    def reset_metrics(self) -> None:
        """Begins an epoch or an evaluation."""
        self.running = np.zeros(len(self.evaluation_sums_names))

    # State.

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside the block the decoder's weights are their moving averages; without `ema_decay` nothing changes."""
        self.swap_averages()
        try:
            yield
        finally:
            self.swap_averages()

    def swap_averages(self) -> None:
        """Exchanges weights and averages; twice restores both exactly."""
        for variable, average in zip(self.decoder.trainable_variables, self.averages):
            value = tf.identity(variable.value)
            variable.assign(average.value)
            average.assign(value)

    def state_variables(self) -> dict[str, keras.Variable]:
        """Every variable a restart needs, by a name that is the same in every process."""
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


def counter(name: str) -> keras.Variable:
    """An integer variable, the same on all replicas."""
    return keras.Variable(0, dtype="int64", trainable=False, name=name, aggregation="only_first_replica")


def local(variable: keras.Variable) -> tf.Variable:
    """The copy of a variable that belongs to the replica being traced; assigning to it touches no other.

    Replicas stay equal because all compute their updates from the same reduced numbers.
    """
    value = variable._value
    if isinstance(value, tf.distribute.DistributedValues) and not on_tpu():
        return value._get()
    return value


def assign(variable: tf.Variable, value: tf.Tensor) -> None:
    """Gives the copy that `local` returned its new value, without a word to the other replicas."""
    if on_tpu():
        # What counters would do by themselves is to ask the first replica, one collective each.
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
    else:
        variable.assign(value)


def on_tpu() -> bool:
    """Whether the current strategy drives TPUs, where everything is compiled anyway."""
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def replicated() -> bool:
    """Whether there is more than one replica."""
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def summed_over_replicas(gradients: list[tf.Tensor], sums: dict[str, tf.Tensor]):
    """Gradients and sums added up over all replicas, in one all-reduce."""
    if not replicated():
        return gradients, sums
    context = tf.distribute.get_replica_context()
    reduced = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, *sums.values()])
    return reduced[: len(gradients)], dict(zip(sums, reduced[len(gradients) :]))


def relative_change(before: list[tf.Tensor], weights: list[tf.Variable]) -> tf.Tensor:
    """Norm of the weights' change over their norm before."""
    change = [weight.read_value() - old for weight, old in zip(weights, before)]
    return tf.math.divide_no_nan(tf.linalg.global_norm(change), tf.linalg.global_norm(before))


def average_decay(decay: float, step: Any) -> tf.Tensor:
    """Smaller at the beginning, so that the random initial weights do not stay in the average for long.

    `min(decay, (1 + step) / (10 + step))`, as `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    step = tf.cast(step, tf.float32)
    return tf.minimum(decay, (1.0 + step) / (10.0 + step))


def training_logs(totals: np.ndarray, last: dict[str, float], means: tuple[str, ...] = ()) -> dict[str, float]:
    """Means from sums (loss, nats, weight, the objective's own, dropped updates), and the last update's figures."""
    loss, nats, weight, *own, skipped = totals.tolist()
    divisor = weight or float("nan")
    logs = {"loss": loss / divisor, "nats_per_token": nats / divisor, "tokens": weight, "skipped": skipped}
    return {**logs, **{name: total / divisor for name, total in zip(means, own)}, **last}


def evaluation_logs(totals: np.ndarray, means: tuple[str, ...] = ()) -> dict[str, float]:
    """Means from the sums of `EVALUATION_SUMS` and the objective's own."""
    sums = dict(zip((*EVALUATION_SUMS, *means), totals.tolist()))
    divisor = sums["weight_sum"] or float("nan")
    logs = {
        "loss": sums["nats_sum"] / divisor,
        "accuracy": sums["correct_sum"] / divisor,
        "tokens": sums["weight_sum"],
    }
    logs |= {name: sums[name] / divisor for name in means}
    if sums["bytes_sum"]:
        logs["bits_per_byte"] = sums["text_nats_sum"] / (math.log(2.0) * sums["bytes_sum"])
    return logs
