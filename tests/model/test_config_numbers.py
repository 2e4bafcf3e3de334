"""Claims about numbers in other programs' files: a whole configuration, or one line that names file and key."""

import itertools
import math
from pathlib import Path

import pytest

from tfgpt.common.errors import UserError
from tfgpt.model.checkpoints.huggingface_config import from_hugging_face
from tfgpt.model.checkpoints.peft_adapters import check_adapter_config
from tfgpt.model.config import DecoderConfig

HOSTILE = [math.inf, math.nan, -1, 0, 1.5, 2**31, 10**30, "x", "", "1", [], {}, [1], {"a": 1}, True, 1e-320]
SHAPE = {
    "vocab_size": 99, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4,
}  # fmt: skip
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}  # fmt: skip
MODELS = [
    {"model_type": "gpt2", "vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 9,
     "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "initializer_range": 0.02},
    {"model_type": "llama", **SHAPE, "rope_theta": 1e4, "rope_scaling": SCALING, "rms_norm_eps": 1e-6, "head_dim": 8},
    {"model_type": "qwen2", **SHAPE, "use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8,
     "layer_types": None},
    {"model_type": "smollm3", **SHAPE, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0]},
    {"model_type": "nanochat", **SHAPE, "hidden_act": "relu2", "final_logit_softcapping": 15.0},
]  # fmt: skip


def finite(config: DecoderConfig) -> bool:
    return all(math.isfinite(value) for value in vars(config).values() if isinstance(value, (int, float)))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["model_type"])
def test_a_hostile_value_in_config_json_is_one_line_or_a_finite_model(model):
    assert finite(from_hugging_face(model))
    for key, value in itertools.product([*model, "tfgpt", "quantization_config"], HOSTILE):
        inner = [{**SCALING, name: value} for name in SCALING] if key == "rope_scaling" else []
        for given in (value, *inner):
            line = ""
            try:
                assert finite(from_hugging_face({**model, key: given}, Path("there/config.json"))), (key, given)
            except UserError as error:
                line = str(error)
            assert not line or (line.startswith("there/config.json: ") and "\n" not in line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads: 0 is below the smallest allowed, 1"),
        ({"hidden_size": "x"}, "hidden_size: 'x' is not a whole number"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"rms_norm_eps": math.inf}, "normalization_epsilon: is not a finite number"),
        ({"tfgpt": {"logit_soft_cap": math.inf}}, "logit_soft_cap: is not a finite number"),
    ],
)
def test_the_key_is_named(changes, line):
    with pytest.raises(UserError, match=f"config.json: {line}"):
        from_hugging_face({**MODELS[1], **changes})


@pytest.mark.parametrize("alpha", [math.inf, math.nan, -1, 0, "x", None, 10**400])
def test_an_adapters_alpha_is_a_number_above_0(alpha):
    with pytest.raises(UserError, match=r"adapter_config.json: lora_alpha: .* is not a number above 0"):
        check_adapter_config({"peft_type": "LORA", "lora_alpha": alpha}, Path("adapter_config.json"))
