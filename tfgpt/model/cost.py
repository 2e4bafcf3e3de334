"""Parameters, floating-point operations and memory of a decoder, computed from its configuration without TensorFlow."""

from __future__ import annotations

import dataclasses
import math

from tfgpt.model.checkpoints.lazy_weights import variable_shapes
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import LoraConfig

CHUNK_BYTES = 64 << 20
"""Bytes of the float32 logits that exist at once in the fused cross-entropy."""

NO_LORA = LoraConfig()


def count_parameters(config: DecoderConfig) -> int:
    """Returns the number of trainable parameters; equal to Keras's `count_params`.

    Example:

    >>> from tfgpt.model import presets
    >>> count_parameters(presets.resolve("gpt2"))
    124439808
    """
    return sum(math.prod(shape) for shape in variable_shapes(config).values())


def projection_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes (inputs, outputs) of the matrices in one block, by their names in `lora.LAYERS`."""
    shapes = variable_shapes(dataclasses.replace(config, num_layers=1))
    return {path.split("/")[-2]: shapes[path] for path in shapes if path.startswith("block_") and "/kernel" in path}


def block_matrices(config: DecoderConfig) -> int:
    return sum(inputs * outputs for inputs, outputs in projection_shapes(config).values())


def count_trained_parameters(config: DecoderConfig, lora: LoraConfig = NO_LORA) -> int:
    """Returns the number of parameters the optimizer updates: all, or those of the LoRA adapters."""
    if not lora.lora_rank:
        return count_parameters(config)
    shapes = projection_shapes(config)
    adapted = [shapes[name] for name in lora.layers() if name in shapes]
    return config.num_layers * lora.lora_rank * sum(inputs + outputs for inputs, outputs in adapted)


def training_flops_per_token(config: DecoderConfig, sequence_length: int) -> float:
    """Returns the FLOPs to train on one token: 6 per parameter, and 12 x layers x attention width x length.

    This is PaLM's count (arXiv 2204.02311, appendix B), the numerator of model FLOPs utilization. It leaves out
    parameters that are only looked up (position embeddings, and the input embedding of an untied head), ignores the
    causal mask, and does not count recomputation. A sliding window shortens the attended length.
    """
    parameters = count_parameters(config)
    if config.position_embedding == "learned":
        parameters -= config.max_sequence_length * config.hidden_dim
    if not config.tie_embeddings:
        parameters -= config.vocabulary_size * config.hidden_dim
    attended = min(sequence_length, config.sliding_window or sequence_length)
    return 6.0 * parameters + 12.0 * config.num_layers * config.query_width * attended


def automatic_chunk_tokens(tokens: int | None, vocabulary_size: int) -> int:
    """Returns the tokens in one chunk of the fused cross-entropy.

    All of them if their logits fit in `CHUNK_BYTES`, otherwise a multiple of 128.
    """
    fitting = CHUNK_BYTES // (4 * vocabulary_size)
    if tokens is None or tokens <= fitting:
        return tokens or max(fitting, 1)
    return max(fitting // 128 * 128, 128)


def weight_bytes(config: DecoderConfig, lora: LoraConfig = NO_LORA, *, mixed: bool = False, ema: bool = False) -> int:
    """Returns the bytes of the weights, frozen ones included; exact.

    Args:
        lora: the adapters. Frozen projections in int8 take one byte per parameter and a float32 scale per output.
        mixed: whether a bfloat16 copy is kept next to the float32 weights (not for int8 projections).
        ema: whether a moving average of the trained parameters is kept.
    """
    trained = count_trained_parameters(config, lora)
    parameters = count_parameters(config) + (trained if lora.lora_rank else 0)
    per_parameter = 6 if mixed else 4
    total = parameters * per_parameter + (4 * trained if ema else 0)
    if lora.base_weights == "int8":
        outputs = sum(outputs for _, outputs in projection_shapes(config).values())
        total -= config.num_layers * (block_matrices(config) * (per_parameter - 1) - 4 * outputs)
    return total


def optimizer_bytes(optimizer: str, config: DecoderConfig, lora: LoraConfig = NO_LORA) -> int:
    """Returns the bytes of the optimizer's float32 slots.

    AdamW keeps two per parameter and Lion one. Muon keeps one for the matrices in the blocks (adapters are such
    matrices) and AdamW's two for the rest. Keras's Adafactor keeps rows, columns and their unused product.
    """
    parameters = count_trained_parameters(config, lora)
    matrices = parameters if lora.lora_rank else config.num_layers * block_matrices(config)
    slots = {
        "adamw": 2 * parameters,
        "lion": parameters,
        "muon": 2 * parameters - matrices,
        "adafactor": parameters + parameters // 500,
    }
    return 4 * slots[optimizer]


def training_memory(
    config: DecoderConfig,
    *,
    batch_size: int,
    sequence_length: int,
    optimizer: str = "adamw",
    lora: LoraConfig = NO_LORA,
    mixed: bool = False,
    ema: bool = False,
    accumulate: bool = False,
    chunk_tokens: int = 0,
) -> dict[str, int]:
    """Estimates the memory of a training step at its peak.

    Weights, gradients and optimizer slots are exact. Activations are the tensors that the backward pass reads; a
    compiler may keep fewer or more of them.

    Args:
        batch_size: rows in flight on one device (a micro-batch).
        sequence_length: tokens in a row.
        optimizer: "adamw", "lion", "muon" or "adafactor".
        lora: the adapters, if only they are trained.
        mixed: whether it computes in bfloat16 (mixed_bfloat16).
        ema: whether a moving average of the weights is kept.
        accumulate: whether gradients are summed over several micro-batches.
        chunk_tokens: tokens whose logits exist at once; 0 for `automatic_chunk_tokens`.

    Returns:
        Bytes of "weights", "gradients", "optimizer", "update", "activations" and "logits", and their "total".

    Example:

    >>> from tfgpt.model import presets
    >>> memory = training_memory(presets.resolve("gpt2"), batch_size=1, sequence_length=64)
    >>> memory["weights"], memory["optimizer"]
    (497759232, 995518464)
    """
    trained = count_trained_parameters(config, lora)
    slots = optimizer_bytes(optimizer, config, lora)
    tokens, number = batch_size * sequence_length, 2 if mixed else 4
    chunk = min(chunk_tokens or automatic_chunk_tokens(tokens, config.vocabulary_size), tokens)
    # The logits, their float32 copy and their gradient.
    logits = chunk * config.vocabulary_size * (8 + number)
    if chunk < tokens and not lora.lora_rank:
        # The gradient of the head is summed over the chunks.
        logits += 4 * config.vocabulary_size * config.hidden_dim
    activations = _activation_bytes(config, tokens, sequence_length, number)
    if lora.base_weights == "int8":
        # The projections of one block are converted at a time.
        activations += block_matrices(config) * (6 if mixed else 4)
    parts = {
        "weights": weight_bytes(config, lora, mixed=mixed, ema=ema),
        "gradients": 4 * trained * (2 if accumulate else 1),
        "optimizer": slots,
        # Clipped gradients, new weights and new slots are all computed before the first is written.
        "update": 8 * trained + slots,
        "activations": activations,
        "logits": logits,
    }
    return parts | {"total": sum(parts.values())}


def cache_bytes(config: DecoderConfig, tokens: int, bytes_per_number: int = 4) -> int:
    """Returns the bytes of the keys and values that decoding caches for `tokens` tokens."""
    return 2 * config.num_layers * config.key_value_width * tokens * bytes_per_number


def _activation_bytes(config: DecoderConfig, tokens: int, sequence_length: int, number: int) -> int:
    # A block keeps both normalized inputs, before and after their scales; queries (normalized, scaled, rotated), keys,
    # values and the attention output; the inner activations of the MLP; and the attention weights of four pieces of
    # the queries, which leave out 3/8 of the square.
    transformed = config.query_key_norm or config.position_embedding == "rope"
    kept = 4 * config.hidden_dim + config.intermediate_dim * {"swiglu": 4, "gelu": 3, "squared_relu": 2}[config.mlp]
    kept += config.query_width * (3 if transformed else 2) + config.key_value_width * (4 if transformed else 2)
    attention = 0.625 * config.num_query_heads * sequence_length
    block = tokens * (kept + attention) * number
    # One block at a time has its float32 scores and their gradient.
    scores = tokens * attention * 2 * 4
    if config.rematerialize:
        return int(config.num_layers * tokens * config.hidden_dim * number + block + scores)
    return int(config.num_layers * block + scores)
