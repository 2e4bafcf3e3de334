"""Checks that every layer passes, in the manner of KerasHub's `TestCase`."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def run_layer_test(make: Callable[..., keras.layers.Layer], *inputs: Any) -> None:
    """Checks serialization, an unknown length, and mixed precision; the first of `inputs` is [batch, length, …]."""
    layer = make(name="layer")
    expected = layer(*inputs)
    run_serialization_test(layer, inputs, expected)
    first = tf.constant(inputs[0])
    signature = [tf.TensorSpec([None, None, *first.shape[2:]], first.dtype)]
    unknown = tf.function(lambda first: layer(first, *inputs[1:]), input_signature=signature)
    check_close(unknown(first), expected, 1e-5)
    mixed = make(dtype="mixed_bfloat16")
    low = tf.nest.map_structure(lambda value: value if value.ndim == 2 else tf.cast(value, tf.bfloat16), inputs)
    mixed(*low)  # Token ids and masks, of rank 2, keep their types.
    mixed.set_weights(layer.get_weights())
    check_close(mixed(*low), expected, 0.1)
    assert all(variable.dtype == "float32" for variable in mixed.variables)


def run_serialization_test(layer: keras.layers.Layer, inputs: Any, expected: Any) -> None:
    config = layer.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == config
    again(*inputs)
    assert [variable.path for variable in again.variables] == [variable.path for variable in layer.variables]
    again.set_weights(layer.get_weights())
    check_close(again(*inputs), expected, 0.0)


def check_close(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        one, other = tf.cast(one, tf.float32).numpy(), tf.cast(other, tf.float32).numpy()
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())
