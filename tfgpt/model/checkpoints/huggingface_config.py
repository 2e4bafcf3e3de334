"""Hugging Face's config.json and ours, both ways. Imports no TensorFlow.

What transformers' own keys cannot say of a `DecoderConfig` (initializers, dropout, …) is kept under the key "tfgpt",
which transformers ignores; a model that no model of transformers computes gets `model_type: "tfgpt"`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.errors import SettingError, UserError
from tfgpt.model.config import DecoderConfig

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "nanochat": "NanoChatForCausalLM",
}
"""The models of transformers that are read and written, and their classes."""

TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def transformers_model_type(config: DecoderConfig) -> tuple[str | None, str]:
    """Which model of transformers computes exactly what `config` says.

    Returns:
        (model type, "") or (None, the reason why none does, in one line). Where the model has a scale or a bias that
        the config has not, ones or zeros are written.
    """
    if not math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-6):
        return None, "no model of transformers has its own attention_scale"
    if config.position_embedding == "learned":
        return learned_model_type(config)
    if config.normalization != "rms_norm":
        return None, "no model of transformers here combines RoPE with layer norms"
    if config.mlp == "squared_relu":
        return nanochat_model_type(config)
    if config.mlp != "swiglu":
        return None, "no model of transformers here combines RoPE with a gelu MLP"
    if config.logit_soft_cap is not None or config.embedding_normalization:
        return None, "Llama and Qwen have neither logit_soft_cap nor embedding_normalization"
    if config.query_key_norm:
        return (None, "Qwen3's MLP has no biases (use_bias)") if config.use_bias else ("qwen3", "")
    if config.use_query_key_value_bias and not config.use_bias and config.query_width == config.hidden_dim:
        return "qwen2", ""
    if config.sliding_window is None:
        return "llama", ""
    if config.use_bias or config.use_query_key_value_bias:
        return None, "Mistral, whose attention has a sliding window, has no biases"
    return "mistral", ""


def learned_model_type(config: DecoderConfig) -> tuple[str | None, str]:
    """GPT-2, if all else is as GPT-2's."""
    wanted = {
        "normalization": "layer_norm",
        "mlp": "gelu",
        "query_key_norm": False,
        "logit_soft_cap": None,
        "sliding_window": None,
        "embedding_normalization": False,
        "num_key_value_heads": config.num_query_heads,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            return None, f"GPT-2, transformers' model with learned positions, has not {name}={getattr(config, name)}"
    if config.query_width != config.hidden_dim:
        return None, "GPT-2's heads are together as wide as hidden_dim"
    return "gpt2", ""


def nanochat_model_type(config: DecoderConfig) -> tuple[str | None, str]:
    """nanochat, if all else is as nanochat's."""
    wanted = {
        "query_key_norm": True,
        "normalization_scale": False,
        "embedding_normalization": True,
        "use_bias": False,
        "use_query_key_value_bias": False,
        "sliding_window": None,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            words = f"{name}={getattr(config, name)}"
            return None, f"nanochat, transformers' model with a squared-relu MLP, has not {words}"
    if config.query_width != config.hidden_dim:
        return None, "nanochat's heads are together as wide as hidden_dim"
    return "nanochat", ""


def to_hugging_face(config: DecoderConfig) -> dict[str, Any]:
    """config.json's content, without token ids and dtype."""
    model_type, _ = transformers_model_type(config)
    if model_type is None:
        return {"model_type": "tfgpt", "architectures": ["Decoder"], "tfgpt": config.to_dict()}
    written = gpt2_keys(config) if model_type == "gpt2" else llama_keys(config, model_type)
    written = {"model_type": model_type, "architectures": [ARCHITECTURES[model_type]], **written}
    said = from_hugging_face(written).to_dict()
    unsaid = {name: value for name, value in config.to_dict().items() if said[name] != value}
    return written | ({"tfgpt": unsaid} if unsaid else {})


def gpt2_keys(config: DecoderConfig) -> dict[str, Any]:
    """The keys of GPT2Config."""
    return {
        "vocab_size": config.vocabulary_size,
        "n_positions": config.max_sequence_length,
        "n_ctx": config.max_sequence_length,
        "n_embd": config.hidden_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_query_heads,
        "n_inner": config.intermediate_dim,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.normalization_epsilon,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": config.initializer_range or 0.02,
        "tie_word_embeddings": config.tie_embeddings,
    }


def llama_keys(config: DecoderConfig, model_type: str) -> dict[str, Any]:
    """The keys of LlamaConfig and of those that follow it."""
    keys: dict[str, Any] = {
        "vocab_size": config.vocabulary_size,
        "max_position_embeddings": config.max_sequence_length,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.intermediate_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_query_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "relu2" if model_type == "nanochat" else "silu",
        "rms_norm_eps": config.normalization_epsilon,
        # transformers 4 and other programs read the first, transformers 5 the second.
        "rope_theta": config.rope_max_wavelength,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_max_wavelength},
        "attention_dropout": 0.0,
        "initializer_range": config.initializer_range or 0.02,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if model_type in ("llama", "qwen3"):
        keys["attention_bias"] = config.use_query_key_value_bias or config.use_bias
    if model_type == "llama":
        keys["mlp_bias"] = config.use_bias
    if model_type == "mistral":
        keys["sliding_window"] = config.sliding_window
    if model_type in ("qwen2", "qwen3"):
        windowed = config.sliding_window is not None
        keys |= {"use_sliding_window": windowed, "sliding_window": config.sliding_window, "max_window_layers": 0}
        keys["layer_types"] = ["sliding_attention" if windowed else "full_attention"] * config.num_layers
    if model_type == "nanochat":
        keys |= {"final_logit_softcapping": config.logit_soft_cap, "attention_bias": False}
    return keys


def from_hugging_face(json: Mapping[str, Any], path: Path = Path("config.json")) -> DecoderConfig:
    """The reverse of `to_hugging_face`, for transformers' files as well.

    Raises:
        UserError: a model or a feature that is not supported, or a missing key; the line names `path` and it.
    """
    model_type = json.get("model_type")
    if model_type == "tfgpt":
        values: dict[str, Any] = {}
    elif model_type == "gpt2":
        values = from_gpt2_keys(json, path)
    elif model_type in ARCHITECTURES:
        values = from_llama_keys(json, path)
    else:
        known = ", ".join((*ARCHITECTURES, "tfgpt"))
        raise UserError(f"{path}: model_type {model_type!r} is not supported; supported are {known}")
    try:
        return DecoderConfig.from_dict(values | dict(json.get("tfgpt", {})))
    except SettingError as error:
        raise UserError(f"{path}: {error.name}: {error.problem}") from error


def needed(json: Mapping[str, Any], key: str, path: Path) -> Any:
    """A key that has no default."""
    if json.get(key) is None:
        raise UserError(f"{path}: {key} is missing")
    return json[key]


def only(json: Mapping[str, Any], path: Path, key: str, *allowed: Any) -> None:
    """Refuses a key with a value that the decoder does not compute; the first allowed one is the default."""
    value = json.get(key, allowed[0])
    if value not in allowed:
        raise UserError(f"{path}: {key}={value!r} is not supported, only {' or '.join(map(repr, allowed))}")


def from_gpt2_keys(json: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our fields from GPT2Config's keys."""
    only(json, path, "activation_function", *TANH_GELUS)
    only(json, path, "scale_attn_weights", True)
    only(json, path, "scale_attn_by_inverse_layer_idx", False)
    only(json, path, "add_cross_attention", False)
    width = needed(json, "n_embd", path)
    return {
        "vocabulary_size": needed(json, "vocab_size", path),
        "max_sequence_length": needed(json, "n_positions", path),
        "hidden_dim": width,
        "num_layers": needed(json, "n_layer", path),
        "num_query_heads": needed(json, "n_head", path),
        "intermediate_dim": json.get("n_inner") or 4 * width,
        "position_embedding": "learned",
        "normalization": "layer_norm",
        "normalization_epsilon": json.get("layer_norm_epsilon", 1e-5),
        "mlp": "gelu",
        "use_bias": True,
        "query_key_norm": False,
        "dropout": json.get("resid_pdrop", 0.1),
        "initializer_range": json.get("initializer_range", 0.02),
        "tie_embeddings": json.get("tie_word_embeddings", True),
    }


def from_llama_keys(json: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our fields from the keys of LlamaConfig and of those that follow it."""
    model_type = json["model_type"]
    nanochat = model_type == "nanochat"
    only(json, path, "hidden_act", "relu2" if nanochat else "silu")
    only(json, path, "partial_rotary_factor", 1.0, None)
    heads = needed(json, "num_attention_heads", path)
    width = needed(json, "hidden_size", path)
    attention_bias = {"qwen2": True, "mistral": False}.get(model_type, json.get("attention_bias", False))
    if nanochat:
        only(json, path, "attention_bias", False)
    return {
        "vocabulary_size": needed(json, "vocab_size", path),
        "max_sequence_length": needed(json, "max_position_embeddings", path),
        "hidden_dim": width,
        "intermediate_dim": needed(json, "intermediate_size", path),
        "num_layers": needed(json, "num_hidden_layers", path),
        "num_query_heads": heads,
        "num_key_value_heads": json.get("num_key_value_heads") or heads,
        "head_dim": json.get("head_dim") or (128 if model_type == "qwen3" else width // heads),
        "position_embedding": "rope",
        "rope_max_wavelength": rope_theta(json, path),
        "normalization": "rms_norm",
        "normalization_epsilon": json.get("rms_norm_eps", 1e-6),
        "normalization_scale": not nanochat,
        "mlp": "squared_relu" if nanochat else "swiglu",
        "use_bias": bool(json.get("mlp_bias", False)),
        "use_query_key_value_bias": bool(attention_bias),
        "query_key_norm": model_type in ("qwen3", "nanochat"),
        "embedding_normalization": nanochat,
        "logit_soft_cap": json.get("final_logit_softcapping", 15.0) if nanochat else None,
        "sliding_window": sliding_window(json, path),
        "initializer_range": json.get("initializer_range", 0.02),
        "tie_embeddings": json.get("tie_word_embeddings", False),
    }


def rope_theta(json: Mapping[str, Any], path: Path) -> float:
    """RoPE's base; stretched positions ("linear", "llama3", "yarn", …) are refused."""
    parameters = json.get("rope_parameters") or json.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path}: rope type {kind!r} is not supported, only unscaled RoPE")
    return float(parameters.get("rope_theta", json.get("rope_theta", 10_000.0)))


def sliding_window(json: Mapping[str, Any], path: Path) -> int | None:
    """The window that all layers share, or None; layers that differ are refused."""
    if json["model_type"] == "mistral":
        return json.get("sliding_window")
    if not json.get("use_sliding_window"):
        return None
    layers = needed(json, "num_hidden_layers", path)
    kinds = json.get("layer_types") or ["full_attention"] * json.get("max_window_layers", 28)
    kinds = (list(kinds) + ["sliding_attention"] * layers)[:layers]
    if len(set(kinds)) > 1:
        raise UserError(f"{path}: layer_types differ from layer to layer, which is not supported")
    return json.get("sliding_window", 4096) if kinds[0] == "sliding_attention" else None
