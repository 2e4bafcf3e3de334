"""How fast the run's own step is here, what it holds in memory, and how long the run and an optimal one would take."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from tfgpt.common.process_memory import forget_peak, peak_memory
from tfgpt.diagnosis import system_memory as machines
from tfgpt.diagnosis.check_results import (
    FAIL,
    OK,
    WARN,
    CheckResult,
    format_bytes,
    format_count,
    format_seconds,
    pluralize,
)
from tfgpt.diagnosis.data import LITTLE_REPETITION
from tfgpt.diagnosis.memory import Machine
from tfgpt.diagnosis.probe_model import ProbeModel, trainer_of_shape
from tfgpt.model import cost
from tfgpt.training.compilation import choose_compilation
from tfgpt.training.trainer import Trainer

TOKENS_PER_PARAMETER = 20.0
"""Of a compute-optimal model (Hoffmann et al. 2022, arXiv:2203.15556, table 3: Chinchilla's 70B on 1.4T tokens)."""

USUAL_UTILIZATION = 0.4
"""Of the measured peak, to guess how long an update takes before it is tried."""

TIMED_SECONDS, LEAST_UPDATES, MOST_UPDATES = 3.0, 3, 200
SLOW_RUN_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Speed:
    """What was measured of the run's own step.

    Attributes:
        mode: "graph" or "xla".
        words: how the mode was chosen.
        tokens_per_second: over all replicas.
        seconds_per_update: of one update of the run's batch.
        updates: how many were timed.
        peak_bytes: the most memory that the process (or the first GPU) held meanwhile; None when only a part of a
            (micro-)batch was tried.
        before_bytes: what it held before the model was built.
        loss: of the last update.
    """

    mode: str
    words: str
    tokens_per_second: float
    seconds_per_update: float
    updates: int
    peak_bytes: int | None
    before_bytes: int
    loss: float


@dataclasses.dataclass(frozen=True)
class TimedWork:
    """What is timed: the run's own updates, or, where one takes too long here, updates of a part of its batch.

    Attributes:
        trainer: the step.
        batches: first step → iterator.
        tokens: of one update.
        words: what part it is; "" for the whole.
        fills_memory: whether it holds as many rows at once as the run does.
    """

    trainer: Trainer
    batches: Callable[[int], Any]
    tokens: int
    words: str
    fills_memory: bool


def work_that_fits(subject: ProbeModel, token_seconds: float, seconds: float) -> TimedWork:
    """The run's batch, some rows of a micro-batch, or the small batch: four updates should fit into the time."""
    recipe = subject.recipe
    length = recipe.batch.sequence_length
    tokens = recipe.batch.batch_size * length
    if 4 * tokens * token_seconds <= seconds:
        return TimedWork(subject.run_trainer, subject.run_data.batches, tokens, "", True)
    replicas = subject.strategy.num_replicas_in_sync
    affordable = int(seconds / (4 * token_seconds * length))
    micro = recipe.batch.batch_size // recipe.step.gradient_accumulation_steps
    rows = min(affordable, micro) // replicas * replicas
    if rows:
        trainer = trainer_of_shape(recipe, subject.strategy, subject.run_trainer, (rows, length), recipe.step.compile)
        part = {name: array[:rows] for name, array in subject.batch.items()}
        words = f"from {pluralize(rows, 'row')}" + (", a micro-batch" if rows == micro else "")
        return TimedWork(trainer, lambda step: subject.repeated(part), rows * length, words, rows == micro)
    rows, length = subject.small["token_ids"].shape
    words = f"from {pluralize(rows, 'row')} of {length} tokens"
    return TimedWork(subject.trainer, lambda step: subject.small_batches(), rows * length, words, False)


def measure_speed(subject: ProbeModel, machine: Machine, peak_flops: float, seconds: float, before_bytes: int) -> Speed:
    """Times the run's own updates on its own batches, compiled as the run would be.

    An update that would take longer than a quarter of `seconds` is timed in part and scaled up.
    """
    recipe = subject.recipe
    flops = cost.training_flops_per_token(subject.config, recipe.batch.sequence_length)
    work = work_that_fits(subject, flops / (USUAL_UTILIZATION * peak_flops), seconds)
    if machine.gpu:
        machines.forget_gpu_peak()
    else:
        forget_peak()
    words = [work.words] if work.words else []
    mode = recipe.step.compile
    if work.trainer is subject.trainer:
        mode = "graph"
    mode = choose_compilation(work.trainer, work.batches, mode, log=words.append)
    iterator = work.batches(0)
    logs = work.trainer.train_steps(iterator, 1)
    spent, updates, count = 0.0, 0, 1
    limit = min(seconds / 2, TIMED_SECONDS)
    while updates < LEAST_UPDATES or (spent < limit and updates < MOST_UPDATES):
        started = time.perf_counter()
        logs = work.trainer.train_steps(iterator, count)
        spent += time.perf_counter() - started
        updates += count
        if spent > limit:
            break
        count = max(1, min(int(updates * (limit - spent) / spent), MOST_UPDATES - updates))
    rate = updates * work.tokens / spent
    tokens = recipe.batch.batch_size * recipe.batch.sequence_length
    peak = machines.gpu_peak() if machine.gpu else peak_memory()
    return Speed(
        mode,
        "; ".join(words).replace("Training step: ", ""),
        rate,
        tokens / rate,
        updates,
        peak if work.fills_memory else None,
        before_bytes,
        last_loss(logs),
    )


def last_loss(logs: dict[str, Any]) -> float:
    """The loss in a call's report: a mean, or the last of one for every update."""
    loss = logs.get("loss", math.nan)
    return float(loss[-1]) if getattr(loss, "ndim", 0) else float(loss)


def check_speed(subject: ProbeModel, speed: Speed, peak_flops: float) -> CheckResult:
    """Tokens a second and model-FLOPs utilization (PaLM, arXiv:2204.02311, appendix B)."""
    flops = cost.training_flops_per_token(subject.config, subject.recipe.batch.sequence_length)
    utilization = flops * speed.tokens_per_second / (peak_flops * subject.strategy.num_replicas_in_sync)
    numbers = {
        "tokens_per_second": speed.tokens_per_second,
        "seconds_per_update": speed.seconds_per_update,
        "mode": speed.mode,
        "updates_timed": speed.updates,
        "model_flops_utilization": utilization,
        "peak_flops": peak_flops,
        "flops_per_token": flops,
    }
    line = (
        f"{speed.tokens_per_second:,.0f} tokens/s ("
        f"{format_seconds(speed.seconds_per_update)} an update, {speed.mode}); "
        f"model-FLOPs utilization {utilization:.0%} of {peak_flops / 1e9:,.0f} GFLOP/s measured"
    )
    if speed.words:
        line += f" ({speed.words})"
    if not math.isfinite(speed.loss):
        return CheckResult(
            "speed",
            FAIL,
            f"{line}; but the updates of the whole batch are not finite",
            ("lower --learning_rate",),
            numbers,
        )
    return CheckResult("speed", OK, line, (), numbers)


def check_measured_memory(speed: Speed, machine: Machine, estimated: dict[str, int]) -> CheckResult:
    """The most memory that the trial held, against the estimate and what is there."""
    numbers = {"peak": speed.peak_bytes, "before_model": speed.before_bytes, "estimate": estimated["total"]}
    if speed.peak_bytes is None:
        line = "a whole micro-batch takes too long here to be tried; the estimate has to do"
        return CheckResult("memory measured", OK, line, (), numbers)
    line = f"the trial held at most {format_bytes(speed.peak_bytes)}"
    if speed.before_bytes:
        line += f" ({format_bytes(speed.before_bytes)} of it before there was a model)"
    line += f"; the estimate was {format_bytes(estimated['total'])}"
    memory = machine.memory
    # Training also copies each checkpoint, which the trial does not.
    needed = speed.peak_bytes + estimated.get("checkpoint copy", 0)
    if memory is None or needed <= memory.available:
        return CheckResult("memory measured", OK, line, (), numbers)
    line += f"; with a checkpoint being written that is {format_bytes(needed)} of {format_bytes(memory.available)}"
    status = FAIL if speed.peak_bytes > memory.available else WARN
    advice = ("a smaller micro-batch: --gradient_accumulation_steps with the same --batch_size", "or --rematerialize")
    return CheckResult("memory measured", status, line, advice, numbers)


def check_time(subject: ProbeModel, speed: Speed) -> CheckResult:
    """How long the configured run takes, its validations included."""
    recipe = subject.recipe
    steps = recipe.run.max_steps
    updates = steps * speed.seconds_per_update
    period = recipe.logging.validate_every or max(1, steps // 10)
    validations = 1 + -(-steps // period)
    # A forward pass is a third of an update's work.
    tokens = subject.run_data.validation.steps * recipe.batch.batch_size * recipe.batch.sequence_length
    validation = validations * tokens / (3 * speed.tokens_per_second)
    numbers = {
        "seconds": updates + validation,
        "update_seconds": updates,
        "validation_seconds": validation,
        "validations": validations,
    }
    line = (
        f"{format_seconds(updates + validation)} for {steps:,} updates of "
        f"{recipe.batch.batch_size * recipe.batch.sequence_length:,} tokens and "
        f"{pluralize(validations, 'validation')} (about {format_seconds(validation)} of it)"
    )
    advice = []
    if validation > updates:
        advice.append(
            f"validation takes longer than training: --validate_every={max(1, steps // 2)} or less "
            "--validation_fraction"
        )
    if updates > SLOW_RUN_DAYS * 86400:
        affordable = int(7 * 86400 / speed.seconds_per_update)
        advice.append(f"--max_steps={affordable} takes a week; a smaller --preset or a GPU makes updates shorter")
    return CheckResult("time", WARN if advice else OK, line, tuple(advice), numbers)


def check_optimal(subject: ProbeModel, speed: Speed) -> CheckResult:
    """Tokens and time of a compute-optimal run of this size, and whether the text is enough for it."""
    recipe = subject.recipe
    parameters = cost.count_parameters(subject.config)
    tokens = TOKENS_PER_PARAMETER * parameters
    step_tokens = recipe.batch.batch_size * recipe.batch.sequence_length
    corpus = max(subject.data.train.num_tokens - 1, 1)
    epochs = tokens / corpus
    steps = math.ceil(tokens / step_tokens)
    configured = recipe.run.max_steps * step_tokens
    numbers = {
        "parameters": parameters,
        "tokens": tokens,
        "steps": steps,
        "seconds": tokens / speed.tokens_per_second,
        "epochs": epochs,
        "configured_share": configured / tokens,
        "parameters_for_configured_tokens": configured / TOKENS_PER_PARAMETER,
        "parameters_for_corpus": LITTLE_REPETITION * corpus / TOKENS_PER_PARAMETER,
    }
    line = (
        f"{format_count(parameters)} parameters want about {format_count(tokens)} tokens (20 a parameter, "
        f"arXiv:2203.15556): {format_seconds(tokens / speed.tokens_per_second)} here, --max_steps={steps}; "
        f"this run is {configured / tokens:.{0 if configured > 0.1 * tokens else 2}%} of that; "
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
    return CheckResult("compute-optimal", OK, line, (), numbers)
