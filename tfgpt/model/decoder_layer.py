"""Base classes of the decoder's layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfgpt.model.config import DecoderConfig


class DecoderLayer(keras.layers.Layer):
    """A layer that casts its weights itself and keeps each constructor argument as an attribute of the same name.

    Keras's autocast is off, so that a layer computes the same when it is called again in the backward pass
    (rematerialization), outside Keras's scopes.

    Example:

    >>> class Scale(DecoderLayer):
    ...     def __init__(self, initial_value, **options):
    ...         super().__init__(**options)
    ...         self.initial_value = initial_value
    >>> Scale(2.0, name="scale").get_config()["initial_value"]
    2.0
    """

    def __init__(self, **options: Any):
        super().__init__(autocast=False, **options)

    def compute(self, variable: Any) -> tf.Tensor:
        """Returns a variable's value in the compute dtype."""
        value = tf.convert_to_tensor(variable.value)
        return value if value.dtype.name == self.compute_dtype else tf.cast(value, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in inspect.signature(type(self).__init__).parameters:
            if name not in ("self", "options"):
                value = getattr(self, name)
                config[name] = value.to_dict() if isinstance(value, DecoderConfig) else value
        return config


class ConfiguredLayer(DecoderLayer):
    """A layer that takes a whole `DecoderConfig`, or its dictionary, as `config`.

    Example:

    >>> ConfiguredLayer({"hidden_dim": 96, "num_query_heads": 6}).config.head_dim
    16
    """

    def __init__(self, config: DecoderConfig | Mapping[str, Any], **options: Any):
        super().__init__(**options)
        self.config = config if isinstance(config, DecoderConfig) else DecoderConfig.from_dict(config)
