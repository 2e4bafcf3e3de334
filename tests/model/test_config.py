"""The decoder's config: derived fields, refusals that name the field, JSON round trips, no TensorFlow."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.conftest import refusal
from tests.model.options import OPTIONS
from tfgpt.model.config import DecoderConfig


@pytest.mark.parametrize("name", OPTIONS)
def test_every_config_round_trips_through_json(name):
    config = DecoderConfig.from_dict(OPTIONS[name])
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fields_left_out_are_derived_from_the_others():
    config = DecoderConfig(hidden_dim=96, num_query_heads=6, mlp="gelu", use_bias=True)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_dim) == (16, 6, 384)
    assert config.use_query_key_value_bias is True
    assert config.attention_scale == pytest.approx(0.25)
    # 8/3 x 96 = 256; 8/3 x 100 = 266.7, to the next multiple of 64: 320.
    assert DecoderConfig(hidden_dim=96, num_query_heads=6, mlp="swiglu").intermediate_dim == 256
    assert DecoderConfig(hidden_dim=100, num_query_heads=5, mlp="swiglu").intermediate_dim == 320
    spread = DecoderConfig(initializer_range=None, embedding_initializer_range=1.0)
    assert spread.head_initializer_range == 1.0
    assert DecoderConfig(initializer_range=None).embedding_initializer_range == 0.02


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_dim": 100, "num_query_heads": 3}, "--num_query_heads: 3 does not divide --hidden_dim=100"),
        ({"num_query_heads": 3, "num_key_value_heads": 2}, "--num_key_value_heads: 2 does not divide"),
        ({"head_dim": 9, "position_embedding": "rope"}, "--head_dim: 9 is odd"),
        ({"mlp": "relu"}, "--mlp: 'relu' is not one of gelu, swiglu, squared_relu"),
        ({"logit_soft_cap": 0.0}, "--logit_soft_cap: 0 would make every logit 0"),
        ({"dropout": 1.0}, "--dropout: 1.0 is above the largest allowed"),
        ({"sliding_window": 0}, "--sliding_window: 0 is below the smallest allowed"),
        ({"n_layer": 2}, "--n_layer: no such setting"),
    ],
)
def test_what_cannot_work_is_refused_by_the_fields_name(values, message):
    assert message in refusal(DecoderConfig.from_dict, values)


def test_configs_presets_and_model_directories_are_read_without_tensorflow():
    code = (
        "import sys, tfgpt.model.config, tfgpt.model.presets, tfgpt.model.checkpoints.huggingface;"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
def test_scaled_rope_frequencies_are_those_of_transformers(scaling):
    factors = {"low_freq_factor": 1.5, "high_freq_factor": 6.0, "original_max_position_embeddings": 640}
    parameters = {"rope_type": scaling, "factor": 4.0, "rope_theta": 500.0}
    parameters |= factors if scaling == "llama3" else {}
    theirs = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=2560, rope_parameters=parameters
    )
    expected, _ = ROPE_INIT_FUNCTIONS[scaling](theirs, device="cpu")
    plain = DecoderConfig(head_dim=64, rope_max_wavelength=500.0)
    stretched = {"rope_scaling": scaling, "rope_scaling_factor": 4.0, "rope_original_length": 640}
    stretched |= {"rope_low_frequency_factor": 1.5, "rope_high_frequency_factor": 6.0}
    found = dataclasses.replace(plain, **stretched).inverse_frequencies()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    plain = plain.inverse_frequencies()
    assert np.any((found < plain) & (found > plain / 4)) == (scaling == "llama3")  # some are between
