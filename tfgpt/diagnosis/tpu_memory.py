"""Which TPU chips can hold a model under data parallelism: every chip keeps all weights and all optimizer state."""

from __future__ import annotations

from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult, in_bytes, in_numbers
from tfgpt.diagnosis.memory import adapted_bytes, optimizer_bytes, trained_parameters
from tfgpt.model import presets
from tfgpt.model.config import DecoderConfig
from tfgpt.training.train_config import TrainConfig

GIB = 1 << 30
USABLE = {"v5e": 15.75 * GIB, "v4": 30.75 * GIB, "v6e": 31.24 * GIB, "v5p": 95.73 * GIB}
"""Bytes that the compiler lets a program use on one chip (libtpu 0.0.52's refusals, 2026-11-23). Of v4 the whole chip;
where its two cores are devices of their own, each has 15.25 GiB."""

PROGRAM_BYTES = 0.4 * GIB
"""Machine code of an unrolled decoder: 0.05 to 0.4 GiB were seen."""


def needed_bytes(recipe: TrainConfig, config: DecoderConfig, optimizer: str | None = None) -> dict[str, int]:
    """Bytes on each chip before any activation, by kind, and their "total".

    Weights and slots are exact; the update happens in place. Gradients are whole at the clipping. With accumulation
    the compiler also keeps the bfloat16 copies of the weights over all micro-batches. A 1.1B Llama's steps, compiled,
    needed 0.7 GiB (v5e, one row of 2048) and 3.8 GiB (v6e, four rows) more.

    Args:
        recipe: the run's settings.
        config: the decoder's.
        optimizer: another one than the recipe's.
    """
    parameters = presets.count_parameters(config)
    weights = parameters * (8 if recipe.optimizer.ema_decay else 4)
    if recipe.lora.lora_rank:
        weights = adapted_bytes(recipe, config, copies=0)
    copies = recipe.step.gradient_accumulation_steps > 1 and recipe.step.dtype == "mixed_bfloat16"
    parts = {
        "weights": weights,
        "optimizer": optimizer_bytes(optimizer or recipe.optimizer.optimizer, config, recipe.lora),
        "gradients": 4 * trained_parameters(config, recipe.lora),
        "bfloat16 weights": 2 * parameters if copies else 0,
        "program": int(PROGRAM_BYTES),
    }
    return parts | {"total": sum(parts.values())}


def check_tpu(recipe: TrainConfig, config: DecoderConfig) -> CheckResult:
    """Which kinds of chip hold the model, with every replica keeping a whole copy of it."""
    parts = needed_bytes(recipe, config)
    fits = [chip for chip, usable in USABLE.items() if parts["total"] <= usable]
    kinds = ", ".join(f"{kind} {in_bytes(count)}" for kind, count in parts.items() if kind != "total")
    line = (
        f"each chip holds a whole copy: {in_bytes(parts['total'])} ({kinds}), activations not counted, for "
        f"{in_numbers(presets.count_parameters(config))} parameters; "
    )
    chips = ", ".join(f"{chip} {in_bytes(int(usable))}" for chip, usable in USABLE.items())
    numbers = {"needed": parts, "fits": fits, "usable": USABLE}
    if len(fits) == len(USABLE):
        return CheckResult("TPU", OK, f"{line}every chip has more ({chips})", numbers=numbers)
    advice = tuple(ways_to_fit(recipe, config))
    if fits:
        return CheckResult("TPU", WARN, f"{line}only {', '.join(fits)} can hold it ({chips})", advice, numbers)
    return CheckResult("TPU", FAIL, f"{line}no chip has so much ({chips})", advice, numbers)


def ways_to_fit(recipe: TrainConfig, config: DecoderConfig) -> list[str]:
    """What lowers the need, with what it then is."""
    advice = []
    if recipe.step.gradient_accumulation_steps > 1:
        advice.append("without --gradient_accumulation_steps no copies are kept, where the batch is small enough")
    if not config.rematerialize:
        advice.append("--rematerialize keeps one tensor a block instead of all")
    if recipe.optimizer.ema_decay:
        advice.append("--ema_decay=0 saves a copy of the weights")
    for optimizer in ("lion", "adafactor"):
        total = needed_bytes(recipe, config, optimizer)["total"]
        if total < needed_bytes(recipe, config)["total"]:
            fits = [chip for chip, usable in USABLE.items() if total <= usable]
            advice.append(f"--optimizer={optimizer} needs {in_bytes(total)}: fits {', '.join(fits) or 'none'}")
    advice.append("a smaller --preset; tfgpt does not split a model over several chips")
    return advice
