"""Keras's own AdamW, Muon, Lion and Adafactor, made pure: the step asks for new values and assigns them itself.

Keras's TensorFlow optimizers reduce gradients over replicas and assign variables through `merge_call`. The step here
must clip after the reduction, drop an update that is not finite, average weights and compile the whole with XLA, none
of which `merge_call` allows. `StatelessOptimizer` therefore puts the backend-neutral methods of Keras's base class back
in place, with which `stateless_apply` works under TensorFlow too: variables in, new values out, nothing assigned. The
mathematics, slots and their names stay Keras's.
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
    """Mixin before a Keras optimizer: `stateless_apply` works, the learning rate has a factor in a variable.

    Attributes:
        learning_rate_scale: float32 scalar variable that multiplies the schedule, 1 at first. Lowering it lowers the
            rest of the run's learning rate without touching the schedule; it is saved with the optimizer's state.
        learning_rate_factors: variable's path → factor on its learning rate; 1 for those not in it. Weight decay, which
            is multiplied by the learning rate, is not changed by it.
    """

    learning_rate_factors: dict[str, float] = {}

    stateless_apply = BaseOptimizer.stateless_apply
    assign = BaseOptimizer.assign
    assign_add = BaseOptimizer.assign_add
    assign_sub = BaseOptimizer.assign_sub
    _backend_update_step = BaseOptimizer._backend_update_step
    _var_key = BaseOptimizer._var_key

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots and `learning_rate_scale`."""
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
        """Keras's own update of one variable, with the variable's factor on the learning rate."""
        factor = self.learning_rate_factors.get(variable.path, 1.0)
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def _get_current_learning_rate(self) -> tf.Tensor:
        return super()._get_current_learning_rate() * self.learning_rate_scale


class AdamW(StatelessOptimizer, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` (arXiv:1711.05101) for the training step."""

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
        orthogonalize_dtype: "bfloat16" computes the Newton–Schulz products in bfloat16, as Muon's authors do;
            "float32" is Keras's own way.
        **options: those of `keras.optimizers.Muon`.
    """

    def __init__(self, *arguments: Any, orthogonalize_dtype: str = "float32", **options: Any):
        super().__init__(*arguments, **options)
        self.orthogonalize_dtype = orthogonalize_dtype

    def zeropower_via_newtonschulz5(self, x: tf.Tensor, steps: int) -> tf.Tensor:
        """The nearest semi-orthogonal matrix of `x`, about; float32 whatever the products' type."""
        return tf.cast(super().zeropower_via_newtonschulz5(tf.cast(x, self.orthogonalize_dtype), steps), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "orthogonalize_dtype": self.orthogonalize_dtype}


def build_optimizer(
    config: OptimizerConfig,
    schedule: keras.optimizers.schedules.LearningRateSchedule | float,
    decoder: keras.Model,
    mixed: bool = False,
    parametrization: ParametrizationConfig | None = None,
) -> keras.optimizers.Optimizer:
    """The optimizer that the settings describe, built on the decoder's trainable variables.

    Call it inside the strategy's scope.

    Args:
        config: the settings. Clipping and averaging of weights are not the optimizer's: the step does them.
        schedule: learning rate by update.
        decoder: the model whose variables it updates.
        mixed: compute Muon's Newton–Schulz products in bfloat16.
        parametrization: gives weights learning rates of their own; None: the same for all.
    """
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
        ratio = 1.0 if config.adam_learning_rate is None else config.adam_learning_rate / config.learning_rate
        optimizer = Muon(
            **common,
            adam_weight_decay=config.weight_decay or None,
            adam_beta_1=config.beta_1,
            adam_beta_2=config.beta_2,
            adam_lr_ratio=ratio,
            epsilon=config.epsilon,
            momentum=config.momentum,
            exclude_layers=[re.escape(path) for path in adam_paths(decoder)],
            orthogonalize_dtype="bfloat16" if mixed else "float32",
        )
    optimizer.exclude_from_weight_decay(
        var_list=[variable for variable in decoder.trainable_variables if not decayed(variable, config)]
    )
    optimizer.build(decoder.trainable_variables)
    if parametrization is not None and parametrization.parametrization != "standard":
        optimizer.learning_rate_factors = {
            variable.path: learning_rate_factor(variable.path, decoder.config, parametrization, config.optimizer)
            for variable in decoder.trainable_variables
        }
    return optimizer


def decayed(variable: keras.Variable, config: OptimizerConfig) -> bool:
    """Whether weight decay applies: a matrix whose path no pattern of `weight_decay_exclude` matches."""
    if len(variable.shape) < 2:
        return False
    return not any(re.search(pattern, variable.path) for pattern in config.weight_decay_exclude)


def adam_paths(decoder: keras.Model) -> list[str]:
    """Paths of the matrices that Muon leaves to AdamW: embeddings and the output head.

    Their rows belong to single tokens, so there is no matrix to orthogonalize (Muon's authors' rule).
    """
    matrices = [variable for variable in decoder.trainable_variables if len(variable.shape) == 2]
    return [variable.path for variable in matrices if re.search(r"embedding|head", variable.path)]
