"""Operations of one replica inside `strategy.run`: all-reduce, replica-local variables, cached graph functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def run_steps(
    strategy: tf.distribute.Strategy,
    step: Callable[[Any], dict[str, tf.Tensor]],
    iterator: Any,
    count: tf.Tensor,
    sum_names: Sequence[str],
    last_names: Sequence[str] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs `step` on the next `count` batches on all replicas, in one loop of the graph.

    Returns the sums of the logs `sum_names`, float64, and the last values of the logs `last_names`, float32.
    """

    def body(index, totals, _):
        logs = strategy.run(step, args=(next(iterator),))
        logs = {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}
        sums, last = ([logs[name] for name in names] for names in (sum_names, last_names))
        return index + 1, totals + tf.cast(tf.stack(sums), tf.float64), tf.stack(last) if last else tf.zeros(0)

    start = (tf.zeros((), tf.int64), tf.zeros(len(sum_names), tf.float64), tf.zeros(len(last_names)))
    return tf.while_loop(lambda index, *_: index < count, body, start, parallel_iterations=1)[1:]


def on_tpu() -> bool:
    """Returns whether the current strategy uses TPUs, where `strategy.run` compiles one XLA program."""
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def replicated() -> bool:
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def replica_id() -> tf.Tensor:
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def all_reduce_sum(gradients: list[tf.Tensor], sums: dict[str, tf.Tensor]):
    """Returns gradients and sums added up over all replicas, in one all-reduce."""
    if not replicated():
        return gradients, sums
    context = tf.distribute.get_replica_context()
    reduced = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, *sums.values()])
    return reduced[: len(gradients)], dict(zip(sums, reduced[len(gradients) :]))


def replica_variable(variable: keras.Variable) -> tf.Variable:
    """Returns the copy of a variable that belongs to the replica being traced.

    Replicas stay equal because all of them compute their updates from the same reduced numbers.
    """
    value = variable._value
    if isinstance(value, tf.distribute.DistributedValues) and not on_tpu():
        return value._get()
    return value


def assign_local(variable: tf.Variable, value: tf.Tensor) -> None:
    """Assigns to this replica's copy without communication between replicas."""
    if on_tpu():
        # A counter's own `assign` asks the first replica for the value, with one collective each.
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
    else:
        variable.assign(value)


class ModeFunctions:
    """Traced and compiled functions, cached by mode: "graph" (TensorFlow's kernels) or "xla"."""

    def __init__(self, mode: str):
        self.mode = mode
        self.functions: dict[tuple, Callable] = {}

    def loop(self, function: Callable) -> Callable:
        return self.cached((function.__name__, self.mode), function, reduce_retracing=True)

    def compiled(self, function: Callable, xla: bool = True) -> Callable:
        """Returns `function` compiled by XLA, once for each replica, whose variables it captures.

        On TPUs, or without `xla`, it is returned as it is.
        """
        if not xla or on_tpu():
            return function
        replica = int(tf.get_static_value(replica_id()))
        return self.cached((function.__name__, self.mode, replica), function, jit_compile=True)

    def cached(self, key: tuple, function: Callable, **options: bool) -> Callable:
        if key not in self.functions:
            self.functions[key] = tf.function(function, autograph=False, **options)
        return self.functions[key]
