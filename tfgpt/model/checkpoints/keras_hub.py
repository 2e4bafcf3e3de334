"""KerasHub (formerly KerasNLP) preset directories of GPT-2, Llama 2, Llama 3 and Mistral."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.common.settings import name_file_in_errors
from tfgpt.model.checkpoints.lazy_weights import LazyWeights, Reader, variable_shapes
from tfgpt.model.config import DecoderConfig

CONTEXTS = {"LlamaBackbone": 4096, "Llama3Backbone": 8192, "MistralBackbone": 8192}
"""Context lengths of the published models; presets do not store them."""

COMMON_FIELDS = ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim")

GPT2_LAYER = {
    "self_attention_layer_norm/gamma": "attention_norm/scale",
    "self_attention_layer_norm/beta": "attention_norm/bias",
    "self_attention/attention_output": "attention/output",
    "feedforward_layer_norm/gamma": "mlp_norm/scale",
    "feedforward_layer_norm/beta": "mlp_norm/bias",
    "feedforward_intermediate_dense": "mlp/up",
    "feedforward_output_dense": "mlp/down",
    "self_attention": "attention",
}
LLAMA_LAYER = {
    "self_attention_layernorm/scale": "attention_norm/scale",
    "self_attention/attention_output": "attention/output",
    "feedforward_layernorm/scale": "mlp_norm/scale",
    "feedforward_intermediate_dense": "mlp/up",
    "feedforward_gate_dense": "mlp/gate",
    "feedforward_output_dense": "mlp/down",
    "self_attention": "attention",
}
"""Prefixes of KerasHub's names in a layer, and ours; the first match is used."""

OTHER_VARIABLES = {
    "token_embedding/embeddings": "token_embedding/embeddings",
    "token_embedding/reverse_embeddings": "head/kernel",
    "position_embedding/embeddings": "position_embedding/embeddings",
    "layer_norm/gamma": "final_norm/scale",
    "layer_norm/beta": "final_norm/bias",
    "sequence_output_layernorm/scale": "final_norm/scale",
}


def open_keras_hub_model(directory: Path) -> LazyWeights:
    """Opens a directory of `save_to_preset`. keras_hub loads the weights into memory."""
    path = directory / "config.json"
    settings = read_json(path)
    class_name, options = settings.get("class_name"), settings.get("config") or {}
    config = preset_config(class_name, options, path)  # Refuses before the weights are read.
    import keras_hub

    try:
        backbone = keras_hub.models.Backbone.from_preset(str(directory))
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{directory}: keras_hub cannot read the preset ({reason})") from error
    if any(weight.path.endswith("reverse_embeddings") for weight in backbone.weights):
        config = dataclasses.replace(config, tie_embeddings=False)
    layer = GPT2_LAYER if class_name == "GPT2Backbone" else LLAMA_LAYER
    shapes, readers = variable_shapes(config), dict[str, Reader]()
    for weight in backbone.weights:
        ours = our_path(weight.path, layer)
        if ours not in shapes:
            raise UserError(f"{directory}: weight {weight.path} is one too many: the decoder has no place for it")
        readers[ours] = functools.partial(read_weight, weight, ours == "head/kernel", shapes[ours])
    missing = sorted(shapes.keys() - readers.keys())
    if missing:
        raise UserError(f"{directory}: the preset has no weight for {missing[0]}")
    return LazyWeights(config, readers, np.dtype(np.float32))


def our_path(path: str, layer: Mapping[str, str]) -> str | None:
    if path in OTHER_VARIABLES:
        return OTHER_VARIABLES[path]
    number, _, rest = path.removeprefix("transformer_layer_").partition("/")
    for theirs, ours in layer.items():
        if rest == theirs or rest.startswith(theirs + "/"):
            return f"block_{number}/{ours}{rest[len(theirs) :]}"
    return None


def read_weight(weight: Any, transposed: bool, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a weight; KerasHub stores heads on a separate axis and an untied head transposed."""
    return weight.numpy().T if transposed else weight.numpy().reshape(shape)


def preset_config(class_name: str | None, options: Mapping[str, Any], path: Path) -> DecoderConfig:
    if class_name != "GPT2Backbone" and class_name not in CONTEXTS:
        known = ", ".join(("GPT2Backbone", *CONTEXTS))
        raise UserError(f"{path}: class_name {class_name!r} is not supported; supported are {known}")
    with name_file_in_errors(path):
        common = {name: options[name] for name in COMMON_FIELDS}
        if class_name != "GPT2Backbone":
            return DecoderConfig.from_dict(common | llama_fields(options, class_name, path))
        gpt2 = {
            "num_query_heads": options["num_heads"],
            "max_sequence_length": options["max_sequence_length"],
            "dropout": float(options.get("dropout", 0.0)),
            "position_embedding": "learned",
            "normalization": "layer_norm",
            "normalization_epsilon": 1e-5,
            "mlp": "gelu",
            "use_bias": True,
            "query_key_norm": False,
        }
        return DecoderConfig.from_dict(common | gpt2)


def llama_fields(options: Mapping[str, Any], class_name: str, path: Path) -> dict[str, Any]:
    """Returns fields from the options of LlamaBackbone, Llama3Backbone and MistralBackbone."""
    fields = {
        "num_query_heads": options["num_query_heads"],
        "num_key_value_heads": options["num_key_value_heads"],
        "max_sequence_length": options.get("max_sequence_length") or CONTEXTS[class_name],
        "position_embedding": "rope",
        "rope_max_wavelength": float(options.get("rope_max_wavelength", 10_000)),
        "normalization": "rms_norm",
        "normalization_epsilon": options.get("layer_norm_epsilon", 1e-6),
        "mlp": "swiglu",
        "query_key_norm": False,
    }
    if class_name == "MistralBackbone":
        fields["sliding_window"] = options.get("sliding_window")
    factor = options.get("rope_position_scaling_factor", options.get("rope_scaling_factor", 1.0))
    if factor != 1.0:
        fields |= {"rope_scaling": "linear", "rope_scaling_factor": float(factor)}
    if options.get("rope_frequency_adjustment_factor") is not None:
        if factor != 1.0:
            raise UserError(f"{path}: two kinds of RoPE scaling at once are not supported")
        fields |= {
            "rope_scaling": "llama3",
            "rope_scaling_factor": float(options["rope_frequency_adjustment_factor"]),
            "rope_low_frequency_factor": float(options["rope_low_freq_factor"]),
            "rope_high_frequency_factor": float(options["rope_high_freq_factor"]),
            "rope_original_length": options["rope_pretraining_sequence_length"],
        }
    return fields
