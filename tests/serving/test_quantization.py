"""Weights in int8: what quantization may change, and which axis has the scales."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.serving.models import save_model
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.serving.quantization import ServedWeights, quantize


@pytest.mark.parametrize("axis", [0, 1])
def test_a_number_moves_by_at_most_half_a_step_of_its_channel(axis):
    table = np.random.default_rng(0).normal(size=(50, 70)).astype(np.float32)
    table *= np.exp(np.random.default_rng(1).normal(size=[50, 1] if axis == 0 else [1, 70])).astype(np.float32)
    integers, scales = quantize(table, axis)
    steps = scales[:, None] if axis == 0 else scales[None]
    assert (
        integers.dtype == np.int8 and np.abs(integers).max() == 127 and np.abs(integers).min(axis=1 - axis).max() < 127
    )
    assert (np.abs(integers * steps - table) <= steps * 0.5001).all()
    np.testing.assert_allclose(scales, np.abs(table).max(axis=1 - axis) / 127, rtol=1e-6)


def test_a_channel_of_zeros_stays_zero():
    integers, scales = quantize(np.zeros([3, 2], np.float32), 0)
    assert not integers.any() and scales.tolist() == [1, 1, 1]


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False, "position_embedding": "learned"}], ids=str)
def test_int8_weights_stand_in_for_the_decoders_own(tmp_path, options):
    decoder = load_decoder(save_model(tmp_path, **options), dtype="float32")
    before = {variable.path: np.asarray(variable.value) for variable in decoder.variables}
    weights = ServedWeights(decoder, "int8")
    ids = {"token_ids": tf.constant([[1, 2, 3]])}
    plain = decoder(ids).numpy()
    with weights.in_place():
        inside = decoder(ids).numpy()
    weights.assign_to_decoder()
    np.testing.assert_array_equal(inside, decoder(ids).numpy())
    assert 0 < np.abs(inside - plain).max() < 0.2 * np.abs(plain).max()
    for variable in decoder.variables:
        row = np.asarray(variable.value).T if variable.path.endswith(("kernel",)) else np.asarray(variable.value)
        if variable.path.endswith("head/kernel"):
            row = row.T
        if variable.ndim == 2:
            # A row of the embedding or the head, a column of another kernel: at most 255 multiples of one step.
            steps = np.abs(row).max(axis=1, keepdims=True) / 127
            multiples = row / np.where(steps > 0, steps, 1)
            np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-3)
        else:
            np.testing.assert_array_equal(variable.value, before[variable.path])
    # One byte a number of the tables, and little else.
    stored = sum(variable.shape.num_elements() * variable.dtype.size for variable in weights.variables)
    numbers = sum(np.prod(shape.shape) for shape in before.values())
    assert stored < 1.3 * numbers


def test_float32_weights_are_the_decoders_own_variables(tmp_path):
    decoder = load_decoder(save_model(tmp_path), dtype="float32")
    weights = ServedWeights(decoder, "float32")
    assert {id(variable) for variable in weights.variables} == {id(variable.value) for variable in decoder.variables}
    assert not any(isinstance(variable, keras.Variable) for variable in weights.variables)
