"""Memory and disk checks: needs of a run, resources of the machine, and flags that make the run fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from tfgpt.common.errors import UserError
from tfgpt.common.formatting import format_count, format_memory
from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult
from tfgpt.diagnosis.system_memory import Memory, free_disk
from tfgpt.model import cost, presets
from tfgpt.model.config import DecoderConfig
from tfgpt.training.objective_config import ANSWERS_AT_A_TIME
from tfgpt.training.train_config import TrainConfig

RUNTIME_BYTES = {"cpu": 1 << 30, "gpu": 600 << 20, "tpu": 600 << 20}
"""Memory of Python, TensorFlow and its compiled programs (docs/measurements.md). It grows with the model, which is not
counted: the estimate is too low for adapters on a large vocabulary."""

# The same for the second of the two steps that --compile=auto compiles.
SECOND_MODE_BYTES = 400 << 20
# Share of the memory above which an estimate is a warning.
COMFORTABLE = 0.85
PAIR_OBJECTIVES = ("dpo", "ipo", "orpo", "simpo")

GIB = 1 << 30
TPU_BYTES = {"v5e": 15.75 * GIB, "v4": 30.75 * GIB, "v6e": 31.24 * GIB, "v5p": 95.73 * GIB}
"""Bytes that the compiler (libtpu 0.0.52) lets a program use on one chip; on v4 with both cores as one device."""

TPU_PROGRAM_BYTES = int(0.4 * GIB)
"""Machine code of an unrolled decoder, at most."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices of a run, and the RAM or the memory of the smallest GPU; None if unknown."""

    memory: Memory | None
    replicas: int
    gpu: bool


def estimate_memory(config: TrainConfig, decoder_config: DecoderConfig, machine: Machine) -> dict[str, int]:
    """Estimates the bytes that a run needs on one device, by kind, and their "total".

    Logical CPUs share one memory; each GPU has its own. A preference pair is two rows. GRPO also needs the cache of the
    answers it generates at a time and, with --kl_penalty, a reference model.
    """
    objective, step = config.objective.objective, config.step
    rows = config.batch.batch_size * (2 if objective in PAIR_OBJECTIVES else 1)
    parts = cost.training_memory(
        decoder_config,
        batch_size=-(-rows // (step.gradient_accumulation_steps * machine.replicas)),
        sequence_length=config.batch.sequence_length,
        optimizer=config.optimizer.optimizer,
        lora=config.lora,
        mixed=step.dtype == "mixed_bfloat16",
        ema=bool(config.optimizer.ema_decay),
        accumulate=step.gradient_accumulation_steps > 1,
        chunk_tokens=step.cross_entropy_chunk_tokens,
    )
    del parts["total"]
    if not machine.gpu:
        # A checkpoint is copied first and written while training continues.
        copy = parts["optimizer"] + 4 * cost.count_trained_parameters(decoder_config, config.lora)
        parts = {kind: size * machine.replicas for kind, size in parts.items()} | {"checkpoint copy": copy}
    if objective == "grpo":
        parts["answers"] = cost.cache_bytes(decoder_config, ANSWERS_AT_A_TIME * config.batch.sequence_length)
        parts["reference"] = 4 * cost.count_parameters(decoder_config) if config.reward.kl_penalty else 0
    parts["runtime"] = RUNTIME_BYTES["gpu" if machine.gpu else "cpu"]
    if step.compile == "auto":
        parts["runtime"] += SECOND_MODE_BYTES
    return parts | {"total": sum(parts.values())}


def check_memory(config: TrainConfig, decoder_config: DecoderConfig, machine: Machine) -> CheckResult:
    parts = estimate_memory(config, decoder_config, machine)
    total, memory = parts["total"], machine.memory
    parameters = cost.count_parameters(decoder_config)
    trained = cost.count_trained_parameters(decoder_config, config.lora)
    numbers: dict[str, object] = {"estimate": parts, "replicas": machine.replicas, "trained_parameters": trained}
    numbers["frozen_parameters"] = parameters if config.lora.lora_rank else 0
    words = f"{format_count(parameters)} parameters"
    if config.lora.lora_rank:
        words = f"{format_count(parameters)} frozen parameters ({config.lora.base_weights}) and "
        words += f"{format_count(trained)} trained ones"
    line = f"about {format_parts(parts)} for {words}"
    if memory is None:
        return CheckResult("memory", OK, f"{line}; the memory of this system is unknown", numbers=numbers)
    numbers |= {"available": memory.available, "there": memory.total, "source": memory.source}
    line += f"; there is {format_memory(memory.total)} ({memory.source}), {format_memory(memory.available)} of it free"
    if total <= COMFORTABLE * memory.available:
        return CheckResult("memory", OK, line, numbers=numbers)
    advice = tuple(ways_to_fit(config, machine, decoder_config.vocabulary_size, COMFORTABLE * memory.available))
    if total <= memory.available:
        return CheckResult("memory", WARN, f"{line}: that is tight", advice, numbers)
    if total <= memory.total:
        advice = ("stop other programs that use memory", *advice)
    return CheckResult("memory", FAIL, f"{line}: it does not fit", advice, numbers)


def estimate_tpu_memory(config: TrainConfig, decoder_config: DecoderConfig, optimizer: str = "") -> dict[str, int]:
    """Estimates the bytes on each chip before any activation, by kind, and their "total".

    With accumulation the compiler keeps bfloat16 copies of the weights for all micro-batches. `optimizer` replaces the
    run's.
    """
    copies = config.step.gradient_accumulation_steps > 1 and config.step.dtype == "mixed_bfloat16"
    parts = {
        "weights": cost.weight_bytes(decoder_config, config.lora, ema=bool(config.optimizer.ema_decay)),
        "optimizer": cost.optimizer_bytes(optimizer or config.optimizer.optimizer, decoder_config, config.lora),
        "gradients": 4 * cost.count_trained_parameters(decoder_config, config.lora),
        "bfloat16 weights": 2 * cost.count_parameters(decoder_config) if copies else 0,
        "program": TPU_PROGRAM_BYTES,
    }
    return parts | {"total": sum(parts.values())}


def check_tpu(config: TrainConfig, decoder_config: DecoderConfig) -> CheckResult:
    parts = estimate_tpu_memory(config, decoder_config)
    fits = chips_with(parts["total"])
    chips = ", ".join(f"{chip} {format_memory(usable)}" for chip, usable in TPU_BYTES.items())
    numbers = {"needed": parts, "fits": fits, "usable": TPU_BYTES}
    line = f"each chip holds a whole copy: {format_parts(parts)}, activations not counted, for "
    line += f"{format_count(cost.count_parameters(decoder_config))} parameters; "
    if len(fits) == len(TPU_BYTES):
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
            advice.append(f"--optimizer={optimizer} needs {format_memory(total)}: fits {fitting}")
    advice.append("a smaller --preset; tfgpt does not split a model over several chips")
    line += f"only {', '.join(fits)} can hold it" if fits else "no chip has so much"
    return CheckResult("TPU", WARN if fits else FAIL, f"{line} ({chips})", tuple(advice), numbers)


def check_disk(config: TrainConfig, decoder_config: DecoderConfig) -> CheckResult:
    trained = cost.count_trained_parameters(decoder_config, config.lora)
    checkpoint = 4 * trained * (2 if config.optimizer.ema_decay else 1)
    checkpoint += cost.optimizer_bytes(config.optimizer.optimizer, decoder_config, config.lora)
    # The next checkpoint is written before the oldest is deleted.
    kept = config.run.checkpoints_kept + 1 + config.run.save_best
    # The whole model is written, and adapters also by themselves.
    model = 4 * cost.count_parameters(decoder_config) + (4 * trained if config.lora.lora_rank else 0)
    needed, free = kept * checkpoint + model, free_disk(config.run_dir)
    numbers = {"needed": needed, "free": free, "checkpoint": checkpoint}
    line = (
        f"checkpoints and model take {format_memory(needed)} in {config.run_dir}; {format_memory(free)} are free there"
    )
    if needed <= free:
        return CheckResult("disk", OK, line, numbers=numbers)
    advice = "--run_dir=… on a larger disk, or free some space", "--checkpoints_kept=1 and --save_best=false keep fewer"
    return CheckResult("disk", FAIL, line, advice, numbers)


def chips_with(size: float) -> list[str]:
    return [chip for chip, usable in TPU_BYTES.items() if size <= usable]


def format_parts(parts: dict[str, int]) -> str:
    kinds = ", ".join(f"{kind} {format_memory(size)}" for kind, size in parts.items() if kind != "total")
    return f"{format_memory(parts['total'])} ({kinds})"


def ways_to_fit(config: TrainConfig, machine: Machine, vocabulary_size: int, limit: float) -> Iterator[str]:
    """Yields advice whose flags bring the estimate below `limit` bytes, the smallest changes first."""

    def fitting(flags: str, config: TrainConfig) -> Iterator[str]:
        for more_flags, changed in savings(config, machine):
            size = estimate_memory(changed, changed.decoder_config(vocabulary_size), machine)["total"]
            if size <= limit:
                yield f"{' '.join([*flags.split(), *more_flags])} needs about {format_memory(size)}"

    found = list(itertools.islice(fitting("", config), 2))
    if found:
        yield from found
        return
    yield "no smaller micro-batch helps, nor --dtype=mixed_bfloat16 and --rematerialize; fewer parameters do:"
    if config.run.init_from is not None:
        return
    smaller = []
    for name in presets.PRESETS:
        try:
            changed = dataclasses.replace(config, preset=dataclasses.replace(config.preset, preset=name))
        except UserError:
            continue  # Another flag does not suit this preset.
        parameters = cost.count_parameters(changed.decoder_config(vocabulary_size))
        smaller += [(parameters, line) for line in itertools.islice(fitting(f"--preset={name}", changed), 1)]
    yield from (line for _, line in sorted(smaller, reverse=True)[:2])


def savings(config: TrainConfig, machine: Machine) -> Iterator[tuple[list[str], TrainConfig]]:
    """Yields flags and the configuration with them: no change, then accumulation, bfloat16 and recomputation."""
    rows, current = config.batch.batch_size, config.step.gradient_accumulation_steps
    more = range(current + 1, rows // machine.replicas + 1)
    counts = [current, *(count for count in more if rows % (count * machine.replicas) == 0)]
    recomputed = bool(config.model.get("rematerialize"))
    for rematerialize, dtype, count in itertools.product(
        dict.fromkeys((recomputed, True)), dict.fromkeys((config.step.dtype, "mixed_bfloat16")), counts
    ):
        flags, model = [], config.model
        if count != current:
            flags.append(f"--gradient_accumulation_steps={count}")
        if dtype != config.step.dtype:
            flags.append(f"--dtype={dtype}")
        if rematerialize and not recomputed:
            flags.append("--rematerialize")
            model = {**model, "rematerialize": True}
        step = dataclasses.replace(config.step, gradient_accumulation_steps=count, dtype=dtype)
        yield flags, dataclasses.replace(config, step=step, model=model)
