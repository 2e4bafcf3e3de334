"""The decoder computes what Hugging Face `transformers` computes, on tiny random models, in both directions."""

import json

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers

from tests.model.options import GPT2_STYLE, NANOCHAT_STYLE, random_decoder
from tfgpt.model.checkpoints.huggingface import load_config, load_decoder, save_decoder
from tfgpt.model.checkpoints.huggingface_config import transformers_model_type
from tfgpt.model.config import DecoderConfig

TOLERANCE = 1e-4
TOKEN_IDS = np.random.default_rng(0).integers(0, 61, (2, 24)).astype(np.int32)

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 61}
SHARED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

STRETCHED = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
STRETCHED |= {"original_max_position_embeddings": 30}

THEIRS = {
    "gpt2": lambda: transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, n_positions=32, vocab_size=61, initializer_range=0.3, **SPECIAL
    ),
    "gpt2_untied": lambda: transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, n_inner=40, n_positions=32, vocab_size=61, tie_word_embeddings=False, **SPECIAL
    ),
    "llama_grouped": lambda: transformers.LlamaConfig(**SHARED, **SPECIAL, rope_theta=500.0),
    "llama_tied_biased": lambda: transformers.LlamaConfig(
        **SHARED, **SPECIAL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        **SHARED, **SPECIAL, head_dim=16, rope_theta=1e6, tie_word_embeddings=True
    ),
    "qwen3_window": lambda: transformers.Qwen3Config(
        **SHARED, **SPECIAL, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=0
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SHARED, **SPECIAL),
    "mistral_window": lambda: transformers.MistralConfig(**SHARED, **SPECIAL, sliding_window=6),
    "mistral": lambda: transformers.MistralConfig(**SHARED, **SPECIAL, sliding_window=None, head_dim=16),
    "nanochat": lambda: transformers.NanoChatConfig(**SHARED, **SPECIAL),
    "llama_stretched_llama3": lambda: transformers.LlamaConfig(**SHARED, **SPECIAL, rope_parameters=STRETCHED),
    "qwen2_stretched_linear": lambda: transformers.Qwen2Config(
        **SHARED, **SPECIAL, rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**SHARED, **SPECIAL, no_rope_layer_interval=2),
}

MODERN = {"vocabulary_size": 61, "num_layers": 2, "hidden_dim": 32, "num_query_heads": 4, "max_sequence_length": 32}
GPT2 = MODERN | GPT2_STYLE | {"normalization_epsilon": 1e-5}
PLAIN = MODERN | {"query_key_norm": False}

OURS = {
    "gpt2": (GPT2, "gpt2"),
    "gpt2 without biases": (GPT2 | {"use_bias": False}, "gpt2"),
    "gpt2 with biases of queries only": (GPT2 | {"use_bias": False, "use_query_key_value_bias": True}, "gpt2"),
    "gpt2 without scales, untied": (GPT2 | {"normalization_scale": False, "tie_embeddings": False}, "gpt2"),
    "qwen3": (MODERN | {"num_key_value_heads": 2, "head_dim": 16}, "qwen3"),
    "qwen3 with a window and biases": (MODERN | {"sliding_window": 5, "use_query_key_value_bias": True}, "qwen3"),
    "qwen3 without scales": (MODERN | {"normalization_scale": False}, "qwen3"),
    "llama": (PLAIN | {"num_key_value_heads": 1, "tie_embeddings": False}, "llama"),
    "llama with biases": (PLAIN | {"use_bias": True, "use_query_key_value_bias": False}, "llama"),
    "mistral": (PLAIN | {"sliding_window": 7}, "mistral"),
    "qwen2": (PLAIN | {"use_query_key_value_bias": True}, "qwen2"),
    "smollm3": (PLAIN | {"no_rope_layer_interval": 2, "use_bias": True}, "smollm3"),
    "llama stretched as Llama 3.1": (
        PLAIN
        | {"rope_scaling": "llama3", "rope_scaling_factor": 4.0, "rope_max_wavelength": 50.0}
        | {"rope_original_length": 30, "rope_high_frequency_factor": 3.0},
        "llama",
    ),
    "qwen3 stretched": (MODERN | {"rope_scaling": "linear", "rope_scaling_factor": 2.5}, "qwen3"),
    "qwen2 with a window": (PLAIN | {"use_query_key_value_bias": True, "sliding_window": 7}, "qwen2"),
    "nanochat": (MODERN | NANOCHAT_STYLE | {"num_key_value_heads": 2, "logit_soft_cap": 3.0}, "nanochat"),
}


def their_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKEN_IDS, dtype=torch.long)).logits.float().numpy()


@pytest.mark.parametrize("name", THEIRS)
def test_a_checkpoint_of_transformers_gives_its_logits(name, tmp_path):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(THEIRS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    logits = load_decoder(tmp_path)({"token_ids": TOKEN_IDS}).numpy()
    expected = their_logits(model)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", OURS)
def test_a_saved_decoder_opens_in_transformers_with_equal_logits(name, tmp_path):
    values, model_type = OURS[name]
    config = DecoderConfig.from_dict(values)
    assert transformers_model_type(config) == (model_type, "")
    decoder = random_decoder(values)
    save_decoder(decoder, tmp_path, end_of_text_id=0, end_of_turn_id=3, padding_id=2)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.model_type == model_type
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == ([3, 0], 2)
    logits = decoder({"token_ids": TOKEN_IDS}).numpy()
    np.testing.assert_allclose(logits, their_logits(model), atol=TOLERANCE, rtol=TOLERANCE)
    assert load_config(tmp_path) == config
    again = load_decoder(tmp_path)
    np.testing.assert_array_equal(again({"token_ids": TOKEN_IDS}).numpy(), logits)


def test_a_directory_rewritten_by_transformers_still_loads(tmp_path):
    decoder = random_decoder(OURS["qwen3 without scales"][0] | {"dropout": 0.25})
    save_decoder(decoder, tmp_path / "ours")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load_decoder(tmp_path / "theirs")
    assert again.config == decoder.config
    tf.debugging.assert_equal(again({"token_ids": TOKEN_IDS}), decoder({"token_ids": TOKEN_IDS}))


def test_sharded_checkpoints_of_transformers_load(tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(THEIRS["llama_grouped"]())
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) > 3
    assert not (tmp_path / "model.safetensors").exists()
    logits = load_decoder(tmp_path)({"token_ids": TOKEN_IDS}).numpy()
    np.testing.assert_allclose(logits, their_logits(model), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_bfloat16_checkpoint_loads_and_saves_without_loss(tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(THEIRS["qwen3"]()).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    decoder = load_decoder(tmp_path / "theirs", dtype="bfloat16")
    save_decoder(decoder, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_names_without_the_models_prefix_load(tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(THEIRS["gpt2"]())
    model.transformer.save_pretrained(tmp_path)
    logits = load_decoder(tmp_path)({"token_ids": TOKEN_IDS}).numpy()
    np.testing.assert_allclose(logits, their_logits(model), atol=TOLERANCE, rtol=TOLERANCE)
