"""Presets against published sizes."""

import pytest

from tfgpt.common.errors import SettingError
from tfgpt.model.checkpoints.huggingface_config import transformers_model_type
from tfgpt.model.cost import count_parameters
from tfgpt.model.presets import PRESETS, resolve

PUBLISHED = {
    # transformers' GPT2LMHeadModel(...).num_parameters() of OpenAI's four checkpoints.
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    # The model cards: SmolLM2 135M and 360M, Llama 3.2 1B (1.23B) and Llama 3 8B (8.03B).
    "llama_135m": 134_515_008,
    "llama_360m": 361_821_120,
    "llama3_1b": 1_235_814_400,
    "llama3_8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert count_parameters(resolve(name)) == PUBLISHED[name]


def test_every_preset_opens_in_transformers():
    types = {name: transformers_model_type(resolve(name))[0] for name in PRESETS}
    expected = {name: "gpt2" if "gpt2" in name else "llama" if "llama" in name else "qwen3" for name in PRESETS}
    assert types == expected


def test_modern_presets_have_the_intended_sizes():
    sizes = {name: count_parameters(resolve(name)) / 1e6 for name in ("tiny", "mini", "small", "base")}
    assert 1.5 < sizes["tiny"] < 3.5
    assert 10 < sizes["mini"] < 20
    assert 100 < sizes["small"] < 150
    assert 450 < sizes["base"] < 600


def test_resolve_takes_the_tokenizers_vocabulary_and_the_overrides():
    config = resolve("tiny", 5000, {"num_layers": 7, "dropout": 0.1})
    assert (config.vocabulary_size, config.num_layers, config.dropout, config.hidden_dim) == (5000, 7, 0.1, 192)
    assert resolve("tiny", None, {}).vocabulary_size == 4096


def test_overriding_a_width_makes_what_depends_on_it_follow():
    wider = resolve("tiny", None, {"hidden_dim": 384})
    assert (wider.intermediate_dim, wider.head_dim) == (1024, 64)
    more_heads = resolve("tiny", None, {"hidden_dim": 256, "num_query_heads": 8})
    assert (more_heads.head_dim, more_heads.num_key_value_heads) == (32, 1)
    fewer_heads = resolve("mini", None, {"num_query_heads": 3})
    assert (fewer_heads.head_dim, fewer_heads.num_key_value_heads) == (128, 3)


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(SettingError, match="--preset: 'gpt2-xl' is not a preset; did you mean gpt2_xl"):
        resolve("gpt2-xl", 100, {})
