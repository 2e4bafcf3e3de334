"""Named decoder sizes. Does not import TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError
from tfgpt.model.config import DecoderConfig

_GPT2 = {
    "vocabulary_size": 50257,
    "max_sequence_length": 1024,
    "position_embedding": "learned",
    "normalization": "layer_norm",
    "normalization_epsilon": 1e-5,
    "mlp": "gelu",
    "use_bias": True,
    "query_key_norm": False,
    "tie_embeddings": True,
}
"""GPT-2 as released (Radford et al. 2019, and the checkpoints' hparams.json)."""

_LLAMA = {
    "position_embedding": "rope",
    "normalization": "rms_norm",
    "normalization_epsilon": 1e-5,
    "mlp": "swiglu",
    "use_bias": False,
    "query_key_norm": False,
}
"""Llama (Touvron et al. 2023)."""

_MODERN = {
    "position_embedding": "rope",
    "rope_max_wavelength": 10_000.0,
    "normalization": "rms_norm",
    "normalization_epsilon": 1e-6,
    "mlp": "swiglu",
    "use_bias": False,
    "query_key_norm": True,
    "tie_embeddings": True,
}
"""Qwen3's recipe (arXiv 2505.09388): what other programs open as `Qwen3ForCausalLM`. Heads are 64 or 128 wide,
which every inference program has fast attention for."""

PRESETS: dict[str, dict[str, Any]] = {
    # Trains on a laptop's processor in minutes.
    "tiny": _MODERN
    | {
        "vocabulary_size": 4096,
        "num_layers": 4,
        "hidden_dim": 192,
        "num_query_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "intermediate_dim": 512,
        "max_sequence_length": 512,
    },
    # Hours on a processor, minutes on a small GPU.
    "mini": _MODERN
    | {
        "vocabulary_size": 8192,
        "num_layers": 6,
        "hidden_dim": 384,
        "num_query_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_dim": 1024,
        "max_sequence_length": 1024,
    },
    # GPT-2's smallest in today's shape: one GPU.
    "small": _MODERN
    | {
        "vocabulary_size": 32768,
        "num_layers": 12,
        "hidden_dim": 768,
        "num_query_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_dim": 2048,
        "max_sequence_length": 2048,
    },
    # Qwen3-0.6B's shape.
    "base": _MODERN
    | {
        "vocabulary_size": 65536,
        "num_layers": 28,
        "hidden_dim": 1024,
        "num_query_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_dim": 3072,
        "max_sequence_length": 4096,
        "rope_max_wavelength": 1_000_000.0,
    },
    "gpt2": _GPT2 | {"num_layers": 12, "hidden_dim": 768, "num_query_heads": 12},
    "gpt2_medium": _GPT2 | {"num_layers": 24, "hidden_dim": 1024, "num_query_heads": 16},
    "gpt2_large": _GPT2 | {"num_layers": 36, "hidden_dim": 1280, "num_query_heads": 20},
    "gpt2_xl": _GPT2 | {"num_layers": 48, "hidden_dim": 1600, "num_query_heads": 25},
    # SmolLM2-135M.
    "llama_135m": _LLAMA
    | {
        "vocabulary_size": 49152,
        "num_layers": 30,
        "hidden_dim": 576,
        "num_query_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_dim": 1536,
        "max_sequence_length": 8192,
        "rope_max_wavelength": 100_000.0,
        "tie_embeddings": True,
    },
    # SmolLM2-360M.
    "llama_360m": _LLAMA
    | {
        "vocabulary_size": 49152,
        "num_layers": 32,
        "hidden_dim": 960,
        "num_query_heads": 15,
        "num_key_value_heads": 5,
        "intermediate_dim": 2560,
        "max_sequence_length": 8192,
        "rope_max_wavelength": 100_000.0,
        "tie_embeddings": True,
    },
    # Llama 3.2 1B, without its stretched positions.
    "llama3_1b": _LLAMA
    | {
        "vocabulary_size": 128256,
        "num_layers": 16,
        "hidden_dim": 2048,
        "num_query_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_dim": 8192,
        "max_sequence_length": 8192,
        "rope_max_wavelength": 500_000.0,
        "tie_embeddings": True,
    },
    # Llama 3 8B.
    "llama3_8b": _LLAMA
    | {
        "vocabulary_size": 128256,
        "num_layers": 32,
        "hidden_dim": 4096,
        "num_query_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_dim": 14336,
        "max_sequence_length": 8192,
        "rope_max_wavelength": 500_000.0,
        "tie_embeddings": False,
    },
}


def resolve(
    preset: str, vocabulary_size: int | None = None, overrides: Mapping[str, Any] | None = None
) -> DecoderConfig:
    """A preset with some fields changed.

    Args:
        preset: a name in `PRESETS`.
        vocabulary_size: the tokenizer's; None: the preset's usual one.
        overrides: fields of `DecoderConfig`. What the preset says of `intermediate_dim` is forgotten when `hidden_dim`
            or `mlp` is given, of `head_dim` when `num_query_heads` is, and of `num_key_value_heads` when it divides
            that no longer: they are then derived, unless given too.

    Raises:
        SettingError: an unknown preset, or fields that do not fit.
    """
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS) or f"; there are {', '.join(PRESETS)}"
        raise SettingError("preset", f"{preset!r} is no preset{hint}")
    overrides = dict(overrides or {})
    values = dict(PRESETS[preset])
    if vocabulary_size is not None:
        values["vocabulary_size"] = vocabulary_size
    if "hidden_dim" in overrides or "mlp" in overrides:
        values.pop("intermediate_dim", None)
    if "num_query_heads" in overrides:
        values.pop("head_dim", None)
        if overrides["num_query_heads"] % values.get("num_key_value_heads", 1):
            values.pop("num_key_value_heads", None)
    return DecoderConfig.from_dict(values | overrides)
