"""Speed of the run's training step: throughput, peak memory, duration, and the compute-optimal run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfgpt.common.formatting import format_count, format_memory, format_seconds, pluralize
from tfgpt.common.process_memory import forget_peak, peak_memory
from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult
from tfgpt.diagnosis.data import LITTLE_REPETITION
from tfgpt.diagnosis.memory import Machine
from tfgpt.diagnosis.probe_model import ProbeModel
from tfgpt.model import cost
from tfgpt.training.compilation import choose_compilation
from tfgpt.training.trainer import Trainer

# Of a compute-optimal model (Hoffmann et al. 2022, arXiv:2203.15556, table 3).
TOKENS_PER_PARAMETER = 20.0
# Share of the measured peak FLOP/s that an update is assumed to reach before it is timed.
USUAL_UTILIZATION = 0.4
TIMED_SECONDS, MAX_UPDATES = 3.0, 200
SLOW_RUN_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Speed:
    """The measured speed and memory of the training step."""

    mode: str
    notes: str  # how the mode was chosen and which part of the batch was timed
    tokens_per_second: float
    seconds_per_update: float
    updates_timed: int
    peak_bytes: int | None  # of the process or the first GPU; None if only part of a micro-batch was timed
    baseline_bytes: int  # before the model was built
    loss: float


@dataclasses.dataclass(frozen=True)
class TimedWork:
    """Updates to time; `tokens` is the size of one, `note` says which part of the run's batch it is."""

    trainer: Trainer
    batches: Callable[[int], Any]
    tokens: int
    note: str
    fills_memory: bool


def affordable_work(probe: ProbeModel, seconds_per_token: float, seconds: float) -> TimedWork:
    """Returns work of which four updates fit in `seconds`: the batch, rows of a micro-batch, or the small batch."""
    length = probe.config.batch.sequence_length
    if 4 * probe.tokens_per_update * seconds_per_token <= seconds:
        return TimedWork(probe.run_trainer, probe.run_data.batches, probe.tokens_per_update, "", True)
    replicas = probe.strategy.num_replicas_in_sync
    micro_batch = probe.config.batch.batch_size // probe.config.step.gradient_accumulation_steps
    rows = min(int(seconds / (4 * seconds_per_token * length)), micro_batch) // replicas * replicas
    if rows:
        trainer, note = probe.trainer_of_shape((rows, length), probe.config.step.compile), ""
        batch = {name: array[:rows] for name, array in probe.batch.items()}
    else:
        trainer, batch = probe.trainer, probe.small
        rows, length = batch["token_ids"].shape
        micro_batch, note = 0, f" of {length} tokens"
    note = f"from {pluralize(rows, 'row')}{', a micro-batch' if rows == micro_batch else note}"
    return TimedWork(trainer, lambda step: probe.repeat(batch), rows * length, note, rows == micro_batch)


def measure_speed(probe: ProbeModel, machine: Machine, peak_flops: float, seconds: float, baseline_bytes: int) -> Speed:
    """Times updates on the run's batches, compiled as in the run, within about `seconds`."""
    work = affordable_work(probe, probe.flops_per_token / (USUAL_UTILIZATION * peak_flops), seconds)
    if machine.gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    else:
        forget_peak()
    notes = [work.note] if work.note else []
    mode = choose_compilation(work.trainer, work.batches, work.trainer.step_config.compile, log=notes.append)
    iterator = work.batches(0)
    work.trainer.train_steps(iterator, 1)  # Traces and compiles.
    spent, updates, count = 0.0, 0, 1
    limit = min(seconds / 2, TIMED_SECONDS)
    while spent <= limit and updates < MAX_UPDATES:
        started = time.perf_counter()
        logs = work.trainer.train_steps(iterator, count)
        spent += time.perf_counter() - started
        updates += count
        count = max(1, min(int(updates * (limit - spent) / spent), MAX_UPDATES - updates))
    rate = updates * work.tokens / spent
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if machine.gpu else peak_memory()
    return Speed(
        mode=mode,
        notes="; ".join(notes).replace("Training step: ", ""),
        tokens_per_second=rate,
        seconds_per_update=probe.tokens_per_update / rate,
        updates_timed=updates,
        peak_bytes=int(peak) if work.fills_memory else None,
        baseline_bytes=baseline_bytes,
        loss=logs["loss"],
    )


def check_speed(probe: ProbeModel, speed: Speed, peak_flops: float) -> CheckResult:
    """Reports tokens per second and model FLOPs utilization (PaLM, arXiv:2204.02311, appendix B)."""
    utilization = probe.flops_per_token * speed.tokens_per_second / (peak_flops * probe.strategy.num_replicas_in_sync)
    fields = ("mode", "tokens_per_second", "seconds_per_update", "updates_timed")
    numbers = {name: getattr(speed, name) for name in fields} | {"flops_per_token": probe.flops_per_token}
    numbers |= {"model_flops_utilization": utilization, "peak_flops": peak_flops}
    line = (
        f"{speed.tokens_per_second:,.0f} tokens/s ({format_seconds(speed.seconds_per_update)} an update, "
        f"{speed.mode}); model-FLOPs utilization {utilization:.0%} of {peak_flops / 1e9:,.0f} GFLOP/s measured"
    )
    line += f" ({speed.notes})" if speed.notes else ""
    if math.isfinite(speed.loss):
        return CheckResult("speed", OK, line, numbers=numbers)
    line += "; but the updates of the whole batch are not finite"
    return CheckResult("speed", FAIL, line, ("lower --learning_rate",), numbers)


def check_measured_memory(speed: Speed, machine: Machine, estimate: dict[str, int]) -> CheckResult:
    numbers = {"peak": speed.peak_bytes, "before_model": speed.baseline_bytes, "estimate": estimate["total"]}
    if speed.peak_bytes is None:
        line = "a whole micro-batch takes too long to try here; only the estimate is known"
        return CheckResult("memory measured", OK, line, numbers=numbers)
    line = f"the trial held at most {format_memory(speed.peak_bytes)}"
    if speed.baseline_bytes:
        line += f" ({format_memory(speed.baseline_bytes)} of it before there was a model)"
    line += f"; the estimate was {format_memory(estimate['total'])}"
    memory = machine.memory
    # Training also copies checkpoints, which the trial does not.
    needed = speed.peak_bytes + estimate.get("checkpoint copy", 0)
    if memory is None or needed <= memory.available:
        return CheckResult("memory measured", OK, line, numbers=numbers)
    line += f"; with a checkpoint being written that is {format_memory(needed)} of {format_memory(memory.available)}"
    status = FAIL if speed.peak_bytes > memory.available else WARN
    advice = ("a smaller micro-batch: --gradient_accumulation_steps with the same --batch_size", "or --rematerialize")
    return CheckResult("memory measured", status, line, advice, numbers)


def check_time(probe: ProbeModel, speed: Speed) -> CheckResult:
    steps = probe.config.run.max_steps
    update_seconds = steps * speed.seconds_per_update
    period = probe.config.logging.validate_every or max(1, steps // 10)
    validations = 1 + -(-steps // period)
    # A forward pass is a third of an update's work.
    tokens = validations * probe.run_data.validation.steps * probe.tokens_per_update
    validation_seconds = tokens / (3 * speed.tokens_per_second)
    seconds = update_seconds + validation_seconds
    numbers = {"seconds": seconds, "update_seconds": update_seconds}
    numbers |= {"validations": validations, "validation_seconds": validation_seconds}
    line = (
        f"{format_seconds(seconds)} for {steps:,} updates of {probe.tokens_per_update:,} tokens and "
        f"{pluralize(validations, 'validation')} (about {format_seconds(validation_seconds)} of it)"
    )
    advice = []
    if validation_seconds > update_seconds:
        fewer = f"--validate_every={max(1, steps // 2)} or less --validation_fraction"
        advice.append(f"validation takes longer than training: {fewer}")
    if update_seconds > SLOW_RUN_DAYS * 86400:
        affordable = int(7 * 86400 / speed.seconds_per_update)
        advice.append(f"--max_steps={affordable} takes a week; a smaller --preset or a GPU makes updates shorter")
    return CheckResult("time", WARN if advice else OK, line, tuple(advice), numbers)


def check_optimal(probe: ProbeModel, speed: Speed) -> CheckResult:
    """Reports tokens and time of a compute-optimal run of this size, and whether there is enough text for it."""
    parameters = cost.count_parameters(probe.decoder_config)
    tokens = TOKENS_PER_PARAMETER * parameters
    seconds, steps = tokens / speed.tokens_per_second, math.ceil(tokens / probe.tokens_per_update)
    corpus = max(probe.data.train.num_tokens - 1, 1)
    epochs = tokens / corpus
    configured = probe.config.run.max_steps * probe.tokens_per_update
    numbers = {"parameters": parameters, "tokens": tokens, "steps": steps, "seconds": seconds, "epochs": epochs}
    numbers["configured_share"] = configured / tokens
    numbers["parameters_for_configured_tokens"] = configured / TOKENS_PER_PARAMETER
    numbers["parameters_for_corpus"] = LITTLE_REPETITION * corpus / TOKENS_PER_PARAMETER
    line = (
        f"{format_count(parameters)} parameters want about {format_count(tokens)} tokens (20 a parameter, "
        f"arXiv:2203.15556): {format_seconds(seconds)} here, --max_steps={steps}; this run is "
        f"{configured / tokens:.{0 if configured > 0.1 * tokens else 2}%} of that; "
    )
    if epochs <= 1:
        line += f"the text is enough for it (read {epochs:.2g} times)"
    elif epochs <= LITTLE_REPETITION:
        line += f"the text is enough for it, read {epochs:.1f} times (up to about 4 costs little, arXiv:2305.16264)"
    else:
        line += (
            f"the text would be read {epochs:,.0f} times: it is enough for about "
            f"{format_count(numbers['parameters_for_corpus'])} parameters, read 4 times (arXiv:2305.16264)"
        )
    return CheckResult("compute-optimal", OK, line, numbers=numbers)
