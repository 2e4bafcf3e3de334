"""Conversion between Hugging Face's config.json and `DecoderConfig`. No TensorFlow.

Fields that transformers' keys cannot express (initializers, dropout, …) are stored under the key "tfgpt", which
transformers ignores. A model that transformers cannot compute gets `model_type: "tfgpt"`.
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
    "nanochat": "NanoChatForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""The supported model types of transformers, and their classes."""

_LLAMA = {
    "position_embedding": "rope",
    "normalization": "rms_norm",
    "mlp": "swiglu",
    "query_key_norm": False,
    "logit_soft_cap": None,
    "embedding_normalization": False,
    "no_rope_layer_interval": None,
}
FIXED_FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "position_embedding": "learned",
        "normalization": "layer_norm",
        "mlp": "gelu",
        "query_key_norm": False,
        "logit_soft_cap": None,
        "sliding_window": None,
        "embedding_normalization": False,
    },
    "nanochat": {
        "position_embedding": "rope",
        "normalization": "rms_norm",
        "normalization_scale": False,
        "mlp": "squared_relu",
        "query_key_norm": True,
        "embedding_normalization": True,
        "no_rope_layer_interval": None,
        "sliding_window": None,
        "use_bias": False,
        "use_query_key_value_bias": False,
    },
    "qwen3": _LLAMA | {"query_key_norm": True, "use_bias": False},
    "qwen2": _LLAMA | {"use_bias": False, "use_query_key_value_bias": True},
    "llama": _LLAMA | {"sliding_window": None},
    "mistral": _LLAMA | {"use_bias": False, "use_query_key_value_bias": False},
    "smollm3": {name: value for name, value in _LLAMA.items() if name != "no_rope_layer_interval"}
    | {"sliding_window": None},
}
"""The values that each model type requires. The first type of several that fit a config is taken."""

FULL_WIDTH = ("gpt2", "nanochat", "qwen2")
"""Model types whose heads are together as wide as `hidden_dim`."""

GPT2_KEYS = {
    "vocab_size": "vocabulary_size",
    "n_positions": "max_sequence_length",
    "n_embd": "hidden_dim",
    "n_layer": "num_layers",
    "n_head": "num_query_heads",
}
LLAMA_KEYS = {
    "vocab_size": "vocabulary_size",
    "max_position_embeddings": "max_sequence_length",
    "hidden_size": "hidden_dim",
    "intermediate_size": "intermediate_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_query_heads",
}
"""Required keys, and the fields that they hold."""

TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def transformers_model_type(config: DecoderConfig) -> tuple[str | None, str]:
    """Returns the model type of transformers that computes exactly what `config` describes.

    If that model has scales or biases that the config does not have, ones or zeros are written.

    Returns:
        (model type, "") or (None, the reason why there is none).
    """
    if not math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-6):
        return None, f"transformers has no model with attention_scale={config.attention_scale:g}"
    differences = {}
    for name, fields in FIXED_FIELDS.items():
        if name in FULL_WIDTH:
            fields = fields | {"query_width": config.hidden_dim}
        if name == "gpt2":
            fields = fields | {"num_key_value_heads": config.num_query_heads}
        differences[name] = [field for field, value in fields.items() if getattr(config, field) != value]
    model_type = min(differences, key=lambda name: len(differences[name]))
    if not differences[model_type]:
        return model_type, ""
    values = ", ".join(f"{field}={getattr(config, field)}" for field in differences[model_type])
    return None, f"{ARCHITECTURES[model_type]}, the most similar model of transformers, has no {values}"


def to_hugging_face(config: DecoderConfig) -> dict[str, Any]:
    """Returns the content of config.json, without token ids and dtype."""
    model_type, _ = transformers_model_type(config)
    if model_type is None:
        return {"model_type": "tfgpt", "architectures": ["Decoder"], "tfgpt": config.to_dict()}
    gpt2 = {key: getattr(config, field) for key, field in GPT2_KEYS.items()} | {
        "n_ctx": config.max_sequence_length,
        "n_inner": config.intermediate_dim,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.normalization_epsilon,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
    }
    written = {
        "model_type": model_type,
        "architectures": [ARCHITECTURES[model_type]],
        **(gpt2 if model_type == "gpt2" else to_llama(config, model_type)),
        "initializer_range": config.initializer_range or 0.02,
        "tie_word_embeddings": config.tie_embeddings,
    }
    read = from_hugging_face(written).to_dict()
    rest = {name: value for name, value in config.to_dict().items() if read[name] != value}
    return written | ({"tfgpt": rest} if rest else {})


def to_llama(config: DecoderConfig, model_type: str) -> dict[str, Any]:
    scaling: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling != "none":
        scaling = {"rope_type": config.rope_scaling, "factor": config.rope_scaling_factor}
    if config.rope_scaling == "llama3":
        scaling |= {
            "low_freq_factor": config.rope_low_frequency_factor,
            "high_freq_factor": config.rope_high_frequency_factor,
            "original_max_position_embeddings": config.rope_original_length,
        }
    keys: dict[str, Any] = {key: getattr(config, field) for key, field in LLAMA_KEYS.items()} | {
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "relu2" if model_type == "nanochat" else "silu",
        "rms_norm_eps": config.normalization_epsilon,
        # transformers 4 and other programs read the first, transformers 5 the second.
        "rope_theta": config.rope_max_wavelength,
        "rope_parameters": scaling | {"rope_theta": config.rope_max_wavelength},
        "rope_scaling": None if config.rope_scaling == "none" else scaling,
        "attention_dropout": 0.0,
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


def from_hugging_face(json: Mapping[str, Any], path: Path = Path("config.json")) -> DecoderConfig:
    """Reads the content of config.json, also of transformers' own files."""
    model_type = json.get("model_type")
    with name_file_in_errors(path):
        if json.get("quantization_config"):
            kind = json["quantization_config"].get("quant_method", "some kind of")
            raise UserError(f"{path}: quantization_config: {kind} quantized weights are not supported")
        changes = dict(json.get("tfgpt", {}))
        if model_type == "tfgpt":
            return DecoderConfig.from_dict(changes)
        if model_type not in ARCHITECTURES:
            known = (*ARCHITECTURES, "tfgpt")
            raise UserError(f"{path}: model_type {model_type!r} is not supported; supported are {', '.join(known)}")
        values = from_gpt2(json, path) if model_type == "gpt2" else from_llama(json, path)
        # Fields are derived before "tfgpt" changes some of them, as they were when the file was written.
        return DecoderConfig.from_dict(DecoderConfig.from_dict(FIXED_FIELDS[model_type] | values).to_dict() | changes)


def from_gpt2(json: Mapping[str, Any], path: Path) -> dict[str, Any]:
    check_value(json, path, "activation_function", *TANH_GELUS)
    check_value(json, path, "scale_attn_weights", True)
    check_value(json, path, "scale_attn_by_inverse_layer_idx", False)
    check_value(json, path, "add_cross_attention", False)
    width = positive_integer(json, "n_embd")
    return {field: required(json, key, path) for key, field in GPT2_KEYS.items()} | {
        "intermediate_dim": json.get("n_inner") or 4 * width,
        "normalization_epsilon": json.get("layer_norm_epsilon", 1e-5),
        "use_bias": True,
        "dropout": json.get("resid_pdrop", 0.1),
        "initializer_range": json.get("initializer_range", 0.02),
        "tie_embeddings": json.get("tie_word_embeddings", True),
    }


def from_llama(json: Mapping[str, Any], path: Path) -> dict[str, Any]:
    model_type = json["model_type"]
    nanochat = model_type == "nanochat"
    check_value(json, path, "hidden_act", "relu2" if nanochat else "silu")
    check_value(json, path, "partial_rotary_factor", 1.0, None)
    heads, width = positive_integer(json, "num_attention_heads"), positive_integer(json, "hidden_size")
    attention_bias = {"qwen2": True, "mistral": False}.get(model_type, json.get("attention_bias", False))
    if nanochat:
        check_value(json, path, "attention_bias", False)
    return {field: required(json, key, path) for key, field in LLAMA_KEYS.items()} | {
        "num_key_value_heads": json.get("num_key_value_heads") or heads,
        "head_dim": json.get("head_dim") or (128 if model_type == "qwen3" else width // heads),
        **rope_fields(json, path),
        "no_rope_layer_interval": no_rope_layer_interval(json, path),
        "normalization_epsilon": json.get("rms_norm_eps", 1e-6),
        "use_bias": bool(json.get("mlp_bias", False)),
        "use_query_key_value_bias": bool(attention_bias),
        "logit_soft_cap": json.get("final_logit_softcapping", 15.0) if nanochat else None,
        "sliding_window": sliding_window(json, path),
        "initializer_range": json.get("initializer_range", 0.02),
        "tie_embeddings": json.get("tie_word_embeddings", model_type == "smollm3"),
    }


def rope_fields(json: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the fields of RoPE's base and scaling; refuses other scalings ("dynamic", "yarn", "longrope")."""
    parameters = json.get("rope_parameters") or json.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise UserError(f"{path}: rope_scaling should be a JSON object")
    check_value(parameters, path, "partial_rotary_factor", 1.0, None)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"{path}: rope type {kind!r} is not supported, only unscaled RoPE, 'linear' and 'llama3'")
    theta = parameters.get("rope_theta", json.get("rope_theta"))
    default = 2_000_000.0 if json["model_type"] == "smollm3" else 10_000.0
    fields: dict[str, Any] = {"rope_max_wavelength": float(theta or default)}
    if kind != "default":
        fields |= {"rope_scaling": kind, "rope_scaling_factor": float(required(parameters, "factor", path))}
    if kind == "llama3":
        fields |= {
            "rope_low_frequency_factor": float(required(parameters, "low_freq_factor", path)),
            "rope_high_frequency_factor": float(required(parameters, "high_freq_factor", path)),
            "rope_original_length": required(parameters, "original_max_position_embeddings", path),
        }
    return fields


def no_rope_layer_interval(json: Mapping[str, Any], path: Path) -> int | None:
    """Returns the interval of SmolLM3's blocks without RoPE; refuses irregular ones."""
    if json["model_type"] != "smollm3":
        return None
    layers = positive_integer(json, "num_hidden_layers", MOST_LAYERS)
    interval = positive_integer({"no_rope_layer_interval": 4, **json}, "no_rope_layer_interval")
    rotated = json.get("no_rope_layers")  # Despite its name: 1 with RoPE, 0 without.
    if rotated is None:
        rotated = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if all(rotated[:layers]):
        return None
    found = rotated.index(0) + 1
    if [bool(flag) for flag in rotated[:layers]] != [(layer + 1) % found != 0 for layer in range(layers)]:
        raise UserError(f"{path}: no_rope_layers is not supported where its zeros do not come at equal intervals")
    return found


def sliding_window(json: Mapping[str, Any], path: Path) -> int | None:
    """Returns the window of all layers, or None; refuses layers that differ."""
    if json["model_type"] == "mistral":
        return json.get("sliding_window", 4096)
    if json["model_type"] == "smollm3":
        check_value(json, path, "use_sliding_window", False)
    if not json.get("use_sliding_window"):
        return None
    layers = positive_integer(json, "num_hidden_layers", MOST_LAYERS)
    kinds = json.get("layer_types") or ["full_attention"] * min(json.get("max_window_layers", 28), layers)
    kinds = (list(kinds) + ["sliding_attention"] * layers)[:layers]
    if len(set(kinds)) > 1:
        raise UserError(f"{path}: layer_types differ from layer to layer, which is not supported")
    return json.get("sliding_window", 4096) if kinds[0] == "sliding_attention" else None


def required(json: Mapping[str, Any], key: str, path: Path) -> Any:
    if json.get(key) is None:
        raise UserError(f"{path}: {key} is missing")
    return json[key]


def check_value(json: Mapping[str, Any], path: Path, key: str, *allowed: Any) -> None:
    """Refuses other values of a key than the allowed ones; the first one is the default."""
    value = json.get(key, allowed[0])
    if value not in allowed:
        raise UserError(f"{path}: {key}={value!r} is not supported, only {' or '.join(map(repr, allowed))}")
