"""RoPE's frequencies against those of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tfgpt.model.rope import inverse_frequencies


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
def test_scaled_frequencies_are_those_of_transformers(scaling: str):
    factors = {"low_freq_factor": 1.5, "high_freq_factor": 6.0, "original_max_position_embeddings": 640}
    parameters = {"rope_type": scaling, "factor": 4.0, "rope_theta": 500.0}
    parameters |= factors if scaling == "llama3" else {}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=2560, rope_parameters=parameters
    )
    expected, _ = ROPE_INIT_FUNCTIONS[scaling](config, device="cpu")
    found = inverse_frequencies(64, 500.0, scaling, 4.0, 640, 1.5, 6.0)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    plain = inverse_frequencies(64, 500.0)
    assert np.any((found < plain) & (found > plain / 4)) == (scaling == "llama3")  # some are between
