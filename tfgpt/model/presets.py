"""Named decoder sizes, and what a size costs: parameters, memory, floating-point operations. Imports no TensorFlow."""

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


def count_parameters(config: DecoderConfig) -> int:
    """How many trainable numbers the decoder has; exactly Keras's `count_params`."""
    embeddings = config.vocabulary_size * config.hidden_dim * (1 if config.tie_embeddings else 2)
    if config.position_embedding == "learned":
        embeddings += config.max_sequence_length * config.hidden_dim
    norm = config.hidden_dim * (config.normalization_scale + config.normalization_bias)
    norms = 2 * config.num_layers + 1 + config.embedding_normalization
    return embeddings + norms * norm + config.num_layers * block_parameters(config)


def block_parameters(config: DecoderConfig) -> int:
    """The parameters of one block's attention and MLP, without the two normalizations before them."""
    hidden, inside = config.hidden_dim, config.intermediate_dim
    query_key_value = config.query_width + 2 * config.key_value_width
    matrices = hidden * query_key_value + config.query_width * hidden
    matrices += (3 if config.mlp == "swiglu" else 2) * hidden * inside
    biases = query_key_value if config.use_query_key_value_bias else 0
    if config.use_bias:
        biases += 2 * hidden + (2 if config.mlp == "swiglu" else 1) * inside
    scales = 2 * config.head_dim if config.query_key_norm and config.normalization_scale else 0
    return matrices + biases + scales


def training_flops_per_token(config: DecoderConfig, sequence_length: int) -> float:
    """Floating-point operations to train on one token: 6 a parameter, and 12 x layers x attention width x length.

    PaLM's count (arXiv 2204.02311, appendix B), which model-FLOPs utilization divides by the peak: parameters that are
    only looked up (position vectors, and the input embedding where the head has its own) are left out, masked
    attention is counted as if it were not masked, and recomputation is not counted. A sliding window shortens what a
    token attends to.
    """
    parameters = count_parameters(config)
    if config.position_embedding == "learned":
        parameters -= config.max_sequence_length * config.hidden_dim
    if not config.tie_embeddings:
        parameters -= config.vocabulary_size * config.hidden_dim
    attended = min(sequence_length, config.sliding_window or sequence_length)
    return 6.0 * parameters + 12.0 * config.num_layers * config.query_width * attended


def training_memory(
    config: DecoderConfig,
    *,
    batch_size: int,
    sequence_length: int,
    optimizer_slots: int = 2,
    mixed: bool = False,
    ema: bool = False,
    logit_chunks: int = 1,
) -> dict[str, int]:
    """About how many bytes a training step holds at its peak, by kind.

    Args:
        batch_size: rows in flight at once on one device (a micro-batch).
        sequence_length: tokens a row.
        optimizer_slots: float32 numbers kept for each parameter: 2 for AdamW, 1 for Lion and Muon.
        mixed: computes in bfloat16 (mixed_bfloat16), parameters in float32.
        ema: keeps a moving average of the weights.
        logit_chunks: the cross-entropy is taken in this many pieces (chunked cross-entropy).

    Returns:
        Bytes of "weights", "gradients", "optimizer", "activations", "logits" and their sum, "total". The weights,
        gradients and optimizer are exact; activations are the tensors that the backward pass reads again, which a
        compiler may keep fewer or more of: its error was not measured on other shapes.
    """
    parameters = count_parameters(config)
    number = 2 if mixed else 4
    tokens = batch_size * sequence_length
    # A block keeps both normalized inputs, before and after their scales; queries (normalized, scaled, rotated), keys,
    # values and their mixture; what is inside the MLP; and the attention weights of four pieces of the queries, which
    # leave out 3/8 of the square.
    turned = config.query_key_norm or config.position_embedding == "rope"
    kept = 4 * config.hidden_dim + (config.intermediate_dim * {"swiglu": 4, "gelu": 3, "squared_relu": 2}[config.mlp])
    kept += config.query_width * (3 if turned else 2) + config.key_value_width * (4 if turned else 2)
    weights = config.num_query_heads * sequence_length
    block = tokens * (kept + 0.625 * weights) * number
    # One block at a time has its scores and their gradient in float32.
    scores = 0.625 * tokens * weights * 2 * 4
    if config.rematerialize:
        activations = config.num_layers * tokens * config.hidden_dim * number + block + scores
    else:
        activations = config.num_layers * block + scores
    parts = {
        "weights": parameters * (4 + (2 if mixed else 0) + (4 if ema else 0)),
        "gradients": parameters * 4,
        "optimizer": parameters * 4 * optimizer_slots,
        "activations": int(activations),
        # The logits, their float32 copy and their gradient.
        "logits": -(-tokens // logit_chunks) * config.vocabulary_size * (8 + number),
    }
    return parts | {"total": sum(parts.values())}


def preset_table(batch_size: int = 8) -> str:
    """A table of all presets: parameters, and memory and operations of a training step, as Markdown.

    Memory is for AdamW in mixed_bfloat16 with rows of up to 1024 tokens and logits taken in 8 pieces.
    """
    heading = ["preset", "layers × width", "heads (key-value)", "vocabulary", "parameters"]
    heading += [f"training memory, {batch_size} rows of", "GFLOPs a token"]
    rows = [heading, ["---"] * len(heading)]
    for name in PRESETS:
        config = resolve(name)
        length = min(config.max_sequence_length, 1024)
        memory = training_memory(config, batch_size=batch_size, sequence_length=length, mixed=True, logit_chunks=8)
        row = [name, f"{config.num_layers} × {config.hidden_dim}"]
        row += [f"{config.num_query_heads} ({config.num_key_value_heads})", f"{config.vocabulary_size:,}"]
        row += [describe_model(count_parameters(config)), f"{length} tokens: {memory['total'] / 2**30:.1f} GiB"]
        rows.append([*row, f"{training_flops_per_token(config, length) / 1e9:.3g}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def describe_model(parameters: int) -> str:
    """124439808 → "124.4M"."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
