"""Hugging Face's config.json and ours, both ways. Imports no TensorFlow.

What transformers' own keys cannot say of a `DecoderConfig` (initializers, dropout, …) is kept under the key "tfgpt",
which transformers ignores; a model that no model of transformers computes gets `model_type: "tfgpt"`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.common.settings import name_file_in_errors, positive_integer
from tfgpt.model.config import MOST_LAYERS, DecoderConfig

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
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
    if config.no_rope_layer_interval is not None:
        return smollm3_model_type(config)
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


def smollm3_model_type(config: DecoderConfig) -> tuple[str | None, str]:
    """SmolLM3, if all else is as SmolLM3's."""
    for name, value in {"query_key_norm": False, "sliding_window": None}.items():
        if getattr(config, name) != value:
            words = f"{name}={getattr(config, name)}"
            return None, f"SmolLM3, transformers' model with blocks without RoPE, has not {words}"
    return "smollm3", ""


def nanochat_model_type(config: DecoderConfig) -> tuple[str | None, str]:
    """nanochat, if all else is as nanochat's."""
    wanted = {
        "query_key_norm": True,
        "no_rope_layer_interval": None,
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
        "rope_parameters": rope_parameters(config) | {"rope_theta": config.rope_max_wavelength},
        "rope_scaling": None if config.rope_scaling == "none" else rope_parameters(config),
        "attention_dropout": 0.0,
        "initializer_range": config.initializer_range or 0.02,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if model_type in ("llama", "qwen3", "smollm3"):
        keys["attention_bias"] = config.use_query_key_value_bias or config.use_bias
    if model_type in ("llama", "smollm3"):
        keys["mlp_bias"] = config.use_bias
    if model_type == "smollm3":
        keys["no_rope_layers"] = [int(config.rotates(block)) for block in range(config.num_layers)]
        keys |= {"no_rope_layer_interval": config.no_rope_layer_interval, "use_sliding_window": False}
    if model_type == "mistral":
        keys["sliding_window"] = config.sliding_window
    if model_type in ("qwen2", "qwen3"):
        windowed = config.sliding_window is not None
        keys |= {"use_sliding_window": windowed, "sliding_window": config.sliding_window, "max_window_layers": 0}
        keys["layer_types"] = ["sliding_attention" if windowed else "full_attention"] * config.num_layers
    if model_type == "nanochat":
        keys |= {"final_logit_softcapping": config.logit_soft_cap, "attention_bias": False}
    return keys


def rope_parameters(config: DecoderConfig) -> dict[str, Any]:
    """RoPE's scaling as transformers writes it."""
    if config.rope_scaling == "none":
        return {"rope_type": "default"}
    written = {"rope_type": config.rope_scaling, "factor": config.rope_scaling_factor}
    if config.rope_scaling == "llama3":
        written |= {
            "low_freq_factor": config.rope_low_frequency_factor,
            "high_freq_factor": config.rope_high_frequency_factor,
            "original_max_position_embeddings": config.rope_original_length,
        }
    return written


def from_hugging_face(json: Mapping[str, Any], path: Path = Path("config.json")) -> DecoderConfig:
    """The reverse of `to_hugging_face`, for transformers' files as well.

    Raises:
        UserError: a model or a feature that is not supported, or a missing key; the line names `path` and it.
    """
    model_type = json.get("model_type")
    with name_file_in_errors(path):
        if json.get("quantization_config"):
            kind = json["quantization_config"].get("quant_method", "some kind of")
            raise UserError(f"{path}: quantization_config: {kind} quantized weights are not supported")
        if model_type == "tfgpt":
            values: dict[str, Any] = {}
        elif model_type == "gpt2":
            values = from_gpt2_keys(json, path)
        elif model_type in ARCHITECTURES:
            values = from_llama_keys(json, path)
        else:
            known = (*ARCHITECTURES, "tfgpt")
            raise UserError(f"{path}: model_type {model_type!r} is not supported; supported are {', '.join(known)}")
        return DecoderConfig.from_dict(values | dict(json.get("tfgpt", {})))


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
    width = positive_integer(json, "n_embd")
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
    heads = positive_integer(json, "num_attention_heads")
    width = positive_integer(json, "hidden_size")
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
        **rope_fields(json, path),
        "no_rope_layer_interval": no_rope_layer_interval(json, path),
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
        "tie_embeddings": json.get("tie_word_embeddings", model_type == "smollm3"),
    }


def rope_fields(json: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """RoPE's base and scaling; kinds of scaling that we do not compute ("dynamic", "yarn", "longrope") are refused."""
    parameters = json.get("rope_parameters") or json.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise UserError(f"{path}: rope_scaling should be a JSON object")
    only(parameters, path, "partial_rotary_factor", 1.0, None)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"{path}: rope type {kind!r} is not supported, only unscaled RoPE, 'linear' and 'llama3'")
    theta = parameters.get("rope_theta", json.get("rope_theta"))
    default = 2_000_000.0 if json["model_type"] == "smollm3" else 10_000.0
    fields: dict[str, Any] = {"rope_max_wavelength": float(theta or default)}
    if kind == "default":
        return fields
    fields |= {"rope_scaling": kind, "rope_scaling_factor": float(needed(parameters, "factor", path))}
    if kind == "llama3":
        fields |= {
            "rope_low_frequency_factor": float(needed(parameters, "low_freq_factor", path)),
            "rope_high_frequency_factor": float(needed(parameters, "high_freq_factor", path)),
            "rope_original_length": needed(parameters, "original_max_position_embeddings", path),
        }
    return fields


def no_rope_layer_interval(json: Mapping[str, Any], path: Path) -> int | None:
    """SmolLM3's blocks without RoPE, which come at regular intervals; other orders are refused."""
    if json["model_type"] != "smollm3":
        return None
    layers = positive_integer(json, "num_hidden_layers", MOST_LAYERS)
    interval = positive_integer({"no_rope_layer_interval": 4, **json}, "no_rope_layer_interval")
    rotated = json.get("no_rope_layers")  # The name means: 1 with RoPE, 0 without.
    if rotated is None:
        rotated = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if all(rotated[:layers]):
        return None
    found = rotated.index(0) + 1
    if [bool(flag) for flag in rotated[:layers]] != [(layer + 1) % found != 0 for layer in range(layers)]:
        raise UserError(f"{path}: no_rope_layers is not supported where its zeros do not come at equal intervals")
    return found


def sliding_window(json: Mapping[str, Any], path: Path) -> int | None:
    """The window that all layers share, or None; layers that differ are refused."""
    if json["model_type"] == "mistral":
        return json.get("sliding_window", 4096)
    if json["model_type"] == "smollm3":
        only(json, path, "use_sliding_window", False)
    if not json.get("use_sliding_window"):
        return None
    layers = positive_integer(json, "num_hidden_layers", MOST_LAYERS)
    kinds = json.get("layer_types") or ["full_attention"] * min(json.get("max_window_layers", 28), layers)
    kinds = (list(kinds) + ["sliding_attention"] * layers)[:layers]
    if len(set(kinds)) > 1:
        raise UserError(f"{path}: layer_types differ from layer to layer, which is not supported")
    return json.get("sliding_window", 4096) if kinds[0] == "sliding_attention" else None
