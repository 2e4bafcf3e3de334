"""Memory check for TPUs under data parallelism, where every chip holds all weights and optimizer slots."""

from __future__ import annotations

from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult, format_bytes, format_count
from tfgpt.diagnosis.memory import format_parts
from tfgpt.model import cost
from tfgpt.model.config import DecoderConfig
from tfgpt.training.train_config import TrainConfig

GIB = 1 << 30
USABLE = {"v5e": 15.75 * GIB, "v4": 30.75 * GIB, "v6e": 31.24 * GIB, "v5p": 95.73 * GIB}
"""Bytes that the compiler (libtpu 0.0.52) lets a program use on one chip; on v4 with both cores as one device."""

PROGRAM_BYTES = int(0.4 * GIB)
"""Machine code of an unrolled decoder, at most."""


def estimate_tpu_memory(config: TrainConfig, decoder_config: DecoderConfig, optimizer: str = "") -> dict[str, int]:
    """Estimates the bytes on each chip before any activation, by kind, and their "total".

    The optimizer updates in place. With accumulation the compiler keeps bfloat16 copies of the weights for all
    micro-batches.

    Args:
        config: the run.
        decoder_config: the decoder's shape.
        optimizer: an optimizer in place of the run's.
    """
    copies = config.step.gradient_accumulation_steps > 1 and config.step.dtype == "mixed_bfloat16"
    parts = {
        "weights": cost.weight_bytes(decoder_config, config.lora, ema=bool(config.optimizer.ema_decay)),
        "optimizer": cost.optimizer_bytes(optimizer or config.optimizer.optimizer, decoder_config, config.lora),
        "gradients": 4 * cost.count_trained_parameters(decoder_config, config.lora),
        "bfloat16 weights": 2 * cost.count_parameters(decoder_config) if copies else 0,
        "program": PROGRAM_BYTES,
    }
    return parts | {"total": sum(parts.values())}


def check_tpu(config: TrainConfig, decoder_config: DecoderConfig) -> CheckResult:
    """Checks which TPU chips can hold the model."""
    parts = estimate_tpu_memory(config, decoder_config)
    fits = chips_with(parts["total"])
    chips = ", ".join(f"{chip} {format_bytes(usable)}" for chip, usable in USABLE.items())
    numbers = {"needed": parts, "fits": fits, "usable": USABLE}
    line = f"each chip holds a whole copy: {format_parts(parts)}, activations not pluralize, for "
    line += f"{format_count(cost.count_parameters(decoder_config))} parameters; "
    if len(fits) == len(USABLE):
        return CheckResult("TPU", OK, f"{line}every chip has more ({chips})", numbers=numbers)
    advice = []
    if config.step.gradient_accumulation_steps > 1:
        advice.append("without --gradient_accumulation_steps no copies are kept, where the batch is small enough")
    if not decoder_config.rematerialize:
        advice.append("--rematerialize keeps one tensor a block instead of all")
    if config.optimizer.ema_decay:
        advice.append("--ema_decay=0 saves a copy of the weights")
    for optimizer in ("lion", "adafactor"):
        total = estimate_tpu_memory(config, decoder_config, optimizer)["total"]
        if total < parts["total"]:
            fitting = ", ".join(chips_with(total)) or "none"
            advice.append(f"--optimizer={optimizer} needs {format_bytes(total)}: fits {fitting}")
    advice.append("a smaller --preset; tfgpt does not split a model over several chips")
    if fits:
        return CheckResult("TPU", WARN, f"{line}only {', '.join(fits)} can hold it ({chips})", tuple(advice), numbers)
    return CheckResult("TPU", FAIL, f"{line}no chip has so much ({chips})", tuple(advice), numbers)


def chips_with(size: float) -> list[str]:
    """Returns the chips with at least `size` usable bytes."""
    return [chip for chip, usable in USABLE.items() if size <= usable]
