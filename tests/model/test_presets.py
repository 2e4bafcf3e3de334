"""Presets against published sizes; counts of parameters and operations against Keras and arithmetic by hand."""

import pytest
from keras import backend

from tests.model.options import OPTIONS
from tfgpt.common.errors import SettingError
from tfgpt.model.checkpoints.huggingface import transformers_model_type
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.model.presets import (
    PRESETS,
    count_parameters,
    preset_table,
    resolve,
    training_flops_per_token,
    training_memory,
)

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


@pytest.mark.parametrize("name", OPTIONS)
def test_counted_parameters_are_kerass(name):
    config = DecoderConfig.from_dict(OPTIONS[name])
    assert count_parameters(config) == Decoder(config).count_params()
    backend.clear_session()


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
    with pytest.raises(SettingError, match="--preset: 'gpt2-xl' is no preset; did you mean gpt2_xl"):
        resolve("gpt2-xl", 100, {})


def test_flops_per_token_are_palms_formula():
    # GPT-2 at 1024 tokens: 6 x (124,439,808 - 1024 x 768) + 12 x 12 layers x 768 x 1024 = 855.2 million.
    assert training_flops_per_token(resolve("gpt2"), 1024) == 6 * 123_653_376 + 12 * 12 * 768 * 1024
    # Untied: the table of input embeddings is only looked up.
    llama = resolve("llama3_8b")
    looked_up = 128_256 * 4096
    assert training_flops_per_token(llama, 100) == 6 * (8_030_261_248 - looked_up) + 12 * 32 * 4096 * 100
    windowed = resolve("llama3_8b", None, {"sliding_window": 10})
    difference = training_flops_per_token(llama, 100) - training_flops_per_token(windowed, 100)
    assert difference == 12 * 32 * 4096 * 90


def test_training_memory_is_the_sum_of_its_parts_and_shrinks_where_it_should():
    config = resolve("gpt2")
    memory = training_memory(config, batch_size=8, sequence_length=1024, mixed=True)
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    assert memory["optimizer"] == 2 * 4 * 124_439_808
    assert memory["gradients"] == 4 * 124_439_808
    recomputed = resolve("gpt2", None, {"rematerialize": True})
    remat = training_memory(recomputed, batch_size=8, sequence_length=1024, mixed=True)
    assert remat["activations"] < memory["activations"] / 4
    chunked = training_memory(config, batch_size=8, sequence_length=1024, mixed=True, logit_chunks=8)
    assert chunked["logits"] * 8 == memory["logits"]
    # design.md: compiled for a TPU v5e, GPT-2 at batch 8, bf16, T=1024 needs 7.1 GiB of temporaries.
    temporaries = (memory["activations"] + memory["logits"]) / 2**30
    assert 0.7 * 7.1 < temporaries < 1.6 * 7.1


def test_the_table_has_a_row_for_every_preset():
    rows = preset_table().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == list(PRESETS)
    assert "124.4M" in rows[list(PRESETS).index("gpt2")]
