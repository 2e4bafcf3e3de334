"""Keras's AdamW, Muon, Lion and Adafactor as pure functions; the training step assigns the new values.

Keras's TensorFlow optimizers reduce gradients over replicas and assign variables through `merge_call`. The step must
clip after the reduction, drop an update that is not finite, average weights and compile the update with XLA, none
of which `merge_call` allows. `StatelessOptimizer` therefore restores the backend-neutral methods of Keras's base class,
with which `stateless_apply` works under TensorFlow too: variables in, new values out. The mathematics, the slots and
their names are Keras's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

from tfgpt.model.maximal_update import ParametrizationConfig, learning_rate_factor
from tfgpt.training.config import OptimizerConfig


class StatelessOptimizer(BaseOptimizer):
    """Mixin before a Keras optimizer that makes `stateless_apply` work and adds factors on the learning rate.

    Attributes:
        learning_rate_scale: float32 scalar variable that multiplies the schedule, 1 at first, saved with the
            optimizer's state. Assign to it to lower the rest of the run's learning rate.
        learning_rate_factors: variable's path → factor on its learning rate (default 1). Weight decay, which is
            multiplied by the learning rate, does not change.
    """

    learning_rate_factors: dict[str, float] = {}

    stateless_apply = BaseOptimizer.stateless_apply
    assign = BaseOptimizer.assign
    assign_add = BaseOptimizer.assign_add
    assign_sub = BaseOptimizer.assign_sub
    _backend_update_step = BaseOptimizer._backend_update_step
    _var_key = BaseOptimizer._var_key

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        with keras.name_scope(self.name, caller=self):
            super().build(list(variables))
            self.learning_rate_scale = self.add_variable(
                shape=(),
                initializer="ones",
                dtype="float32",
                aggregation="only_first_replica",
                name="learning_rate_scale",
            )

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        factor = self.learning_rate_factors.get(variable.path, 1.0)
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def _get_current_learning_rate(self) -> tf.Tensor:
        return super()._get_current_learning_rate() * self.learning_rate_scale


class AdamW(StatelessOptimizer, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` (arXiv:1711.05101) for the training step.

    Example:

    >>> weight = keras.Variable([1.0])
    >>> optimizer = AdamW(learning_rate=0.5, weight_decay=0.0)
    >>> optimizer.build([weight])
    >>> slots = [slot.value for slot in optimizer.variables]
    >>> [value], _ = optimizer.stateless_apply(slots, [tf.constant([2.0])], [weight.value])
    >>> round(float(value[0]), 3), float(weight[0])
    (0.5, 1.0)
    """

    _apply_weight_decay = BaseOptimizer._apply_weight_decay


class Lion(StatelessOptimizer, keras.optimizers.Lion):
    """`keras.optimizers.Lion` (arXiv:2302.06675) for the training step."""

    _apply_weight_decay = BaseOptimizer._apply_weight_decay


class Adafactor(StatelessOptimizer, keras.optimizers.Adafactor):
    """`keras.optimizers.Adafactor` (arXiv:1804.04235) for the training step."""

    _apply_weight_decay = BaseOptimizer._apply_weight_decay


class Muon(StatelessOptimizer, keras.optimizers.Muon):
    """`keras.optimizers.Muon` (https://kellerjordan.github.io/posts/muon, arXiv:2502.16982) for the training step.

    Args:
        orthogonalize_dtype: dtype of the Newton–Schulz products: "bfloat16" as Muon's authors, or "float32" as Keras.

    Example:

    >>> Muon(learning_rate=0.1, orthogonalize_dtype="bfloat16").get_config()["orthogonalize_dtype"]
    'bfloat16'
    """

    def __init__(self, *arguments: Any, orthogonalize_dtype: str = "float32", **options: Any):
        super().__init__(*arguments, **options)
        self.orthogonalize_dtype = orthogonalize_dtype

    def zeropower_via_newtonschulz5(self, x: tf.Tensor, steps: int) -> tf.Tensor:
        return tf.cast(super().zeropower_via_newtonschulz5(tf.cast(x, self.orthogonalize_dtype), steps), x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "orthogonalize_dtype": self.orthogonalize_dtype}


def build_optimizer(
    config: OptimizerConfig,
    schedule: keras.optimizers.schedules.LearningRateSchedule | float,
    decoder: keras.Model,
    mixed: bool = False,
    parametrization: ParametrizationConfig | None = None,
) -> keras.optimizers.Optimizer:
    """Returns the optimizer that the settings describe, built in the strategy's scope for the trainable variables.

    Clipping and averaging of weights are done by the step. With `mixed`, Muon's Newton–Schulz products are in bfloat16.
    """
    variables = decoder.trainable_variables
    common: dict[str, Any] = {
        "learning_rate": schedule,
        "weight_decay": config.weight_decay or None,
        "name": config.optimizer,
    }
    if config.optimizer == "adamw":
        common["weight_decay"] = config.weight_decay
        optimizer = AdamW(**common, beta_1=config.beta_1, beta_2=config.beta_2, epsilon=config.epsilon)
    elif config.optimizer == "lion":
        optimizer = Lion(**common, beta_1=config.beta_1, beta_2=config.beta_2)
    elif config.optimizer == "adafactor":
        optimizer = Adafactor(**common, relative_step=False)
    else:
        # As Muon's authors do, AdamW updates embeddings and output head: each of their rows belongs to one token, so
        # orthogonalization does not apply.
        adam_paths = [one.path for one in variables if len(one.shape) == 2 and re.search("embedding|head", one.path)]
        ratio = 1.0 if config.adam_learning_rate is None else config.adam_learning_rate / config.learning_rate
        optimizer = Muon(
            **common,
            adam_weight_decay=config.weight_decay or None,
            adam_beta_1=config.beta_1,
            adam_beta_2=config.beta_2,
            adam_lr_ratio=ratio,
            epsilon=config.epsilon,
            momentum=config.momentum,
            exclude_layers=[re.escape(path) for path in adam_paths],
            orthogonalize_dtype="bfloat16" if mixed else "float32",
        )
    optimizer.exclude_from_weight_decay(var_list=[one for one in variables if not is_decayed(one, config)])
    optimizer.build(variables)
    if parametrization is not None and parametrization.parametrization != "standard":
        optimizer.learning_rate_factors = {
            variable.path: learning_rate_factor(variable.path, decoder.config, parametrization, config.optimizer)
            for variable in variables
        }
    return optimizer


def is_decayed(variable: keras.Variable, config: OptimizerConfig) -> bool:
    """Returns whether weight decay applies: to matrices whose path `weight_decay_exclude` does not match."""
    excluded = any(re.search(pattern, variable.path) for pattern in config.weight_decay_exclude)
    return len(variable.shape) >= 2 and not excluded
