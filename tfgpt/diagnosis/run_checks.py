"""The examination: every check in its order, from what costs nothing to what takes a minute."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfgpt.common.crash_report import write_crash_file
from tfgpt.common.errors import SettingError, TfgptError
from tfgpt.common.process_memory import held_memory
from tfgpt.diagnosis import system_memory as machines
from tfgpt.diagnosis.causality import check_causality
from tfgpt.diagnosis.check_results import FAIL, CheckResult, Report
from tfgpt.diagnosis.config import DoctorConfig
from tfgpt.diagnosis.data import check_batch, check_corpus, check_tokens
from tfgpt.diagnosis.initialization import check_gradients, check_initial_loss
from tfgpt.diagnosis.memory import Machine, check_disk, check_memory
from tfgpt.diagnosis.overfit import check_overfit
from tfgpt.diagnosis.preview import preview, preview_learned
from tfgpt.diagnosis.probe_model import Batch, ProbeModel, affordable_tokens, at_constant_rate, first_batch
from tfgpt.diagnosis.speed import (
    check_measured_memory,
    check_optimal,
    check_speed,
    check_time,
    measure_speed,
)
from tfgpt.diagnosis.tpu_memory import check_tpu
from tfgpt.model.config import DecoderConfig
from tfgpt.training.distribution.strategy import resolve
from tfgpt.training.objectives.base import Objective, get_objective
from tfgpt.training.peak_flops import measured_peak_flops
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer_and_data

DATA_CHECKS = ("first batch", "tokens", "corpus")
MODEL_CHECKS = ("loss at step 0", "causality", "gradients", "overfit one batch")
SPEED_CHECKS = ("speed", "memory measured", "time", "compute-optimal")


def examine(
    recipe: TrainConfig,
    doctor: DoctorConfig,
    say: Callable[[str], None] = print,
    machine: Machine | None = None,
) -> Report:
    """Makes every check that can be made; writes nothing but the cache of prepared data.

    Args:
        recipe: the run's settings.
        doctor: how much is shown, how long is tried.
        say: prints a line.
        machine: what the run would live on; None: this machine.

    Raises:
        UserError: the text, a flag or the model to start from is at fault.
    """
    chosen = recipe.strategy.strategy
    if chosen == "multiworker" or (chosen == "auto" and os.environ.get("TF_CONFIG")):
        raise SettingError(
            "strategy",
            "doctor examines one machine, not a cluster; leave TF_CONFIG out, use --strategy=auto and one worker's "
            "share of --batch_size",
        )
    report = Report(say)
    strategy = strategy_here(recipe, say)
    machine = machine or this_machine(strategy)
    objective = recipe.objective.objective
    if objective not in ("pretrain", "chat"):
        check_room(report, recipe, recipe.initial_config(), machine)
        why = f"because doctor knows batches of --objective=pretrain and chat only, not of {objective}"
        report.skip((*DATA_CHECKS, *MODEL_CHECKS, *SPEED_CHECKS), why)
        return report
    kind = get_objective(recipe.objective.objective)
    data = kind.prepare(recipe, say)
    config = recipe.decoder_config(data.tokenizer.vocabulary_size)
    batch = training_batch(recipe, data, kind)
    if doctor.preview_rows:
        report.preview = (
            preview_learned(batch, data.tokenizer, doctor.preview_rows, dimmed=False)
            if kind.conversations
            else preview(batch, data.tokenizer, doctor.preview_rows)
        )
        for line in ("", *report.preview, ""):
            say(line)
    report.add(check_batch(batch, config.vocabulary_size, conversations=kind.conversations))
    if kind.conversations:
        report.skip(DATA_CHECKS[1:], "because they count plain text")
    else:
        report.add(check_tokens(data, recipe))
        report.add(check_corpus(data, recipe, data.tokenizer.vocabulary_size))
    memory = check_room(report, recipe, config, machine)
    if memory.status == FAIL:
        report.skip((*MODEL_CHECKS, *SPEED_CHECKS), "because the model does not fit")
        return report
    examine_model(report, recipe, doctor, kind, data, batch, strategy, machine)
    return report


def check_room(report: Report, recipe: TrainConfig, config: DecoderConfig, machine: Machine) -> CheckResult:
    """Adds the checks of disk and memory; the last one."""
    report.add(check_disk(recipe, config))
    if recipe.strategy.strategy == "tpu":
        report.add(check_tpu(recipe, config))
    return report.add(check_memory(recipe, config, machine))


def strategy_here(recipe: TrainConfig, say: Callable[[str], None]) -> tf.distribute.Strategy:
    """The recipe's strategy; where it asks for TPUs that are not there, one device of this machine.

    Raises:
        UserError: the devices asked for are not there.
    """
    try:
        return resolve(recipe.strategy)
    except TfgptError as error:
        if recipe.strategy.strategy != "tpu":
            raise
        say(f"No TPU here ({error}): what can be is checked on this machine, scripts/tpu_compile.sh says more")
        return resolve(dataclasses.replace(recipe.strategy, strategy="one"))


def examine_model(
    report: Report,
    recipe: TrainConfig,
    doctor: DoctorConfig,
    kind: Objective,
    data: Any,
    batch: Batch,
    strategy: tf.distribute.Strategy,
    machine: Machine,
) -> None:
    """The checks that need the model to be built."""
    before = 0 if machine.gpu else held_memory()
    peak_flops = measured_peak_flops(recipe.step.dtype)

    def build() -> ProbeModel:
        config = recipe.decoder_config(data.tokenizer.vocabulary_size)
        tokens = affordable_tokens(config, peak_flops, doctor.overfit_steps, doctor.max_probe_seconds)
        trainer, run_data = build_trainer_and_data(at_constant_rate(recipe), data, strategy, kind)
        forward_tokens = affordable_tokens(config, peak_flops, 1, doctor.max_probe_seconds)
        return ProbeModel.build(recipe, data, strategy, trainer, run_data, batch, tokens, forward_tokens)

    subject = attempted(report, "model", build)
    if subject is None:
        report.skip((*MODEL_CHECKS, *SPEED_CHECKS), "because the model could not be built")
        return
    for name, check in (
        ("loss at step 0", lambda: check_initial_loss(subject)),
        ("causality", lambda: check_causality(subject)),
        ("gradients", lambda: check_gradients(subject)),
        ("overfit one batch", lambda: check_overfit(subject, doctor.overfit_steps, doctor.max_probe_seconds)),
    ):
        if name == "overfit one batch" and not doctor.overfit_steps:
            report.skip((name,), "because of --overfit_steps=0")
            continue
        finding = attempted(report, name, check)
        if finding is not None:
            report.add(finding)
    speed = attempted(
        report, "speed", lambda: measure_speed(subject, machine, peak_flops, doctor.max_probe_seconds, before)
    )
    if speed is None:
        report.skip(SPEED_CHECKS[1:], "because the step does not run")
        return
    report.add(check_speed(subject, speed, peak_flops))
    report.add(check_measured_memory(speed, machine, report.result("memory").numbers["estimate"]))
    report.add(check_time(subject, speed))
    if recipe.objective.objective == "pretrain" and not recipe.lora.lora_rank:
        report.add(check_optimal(subject, speed))
    else:
        report.skip(("compute-optimal",), "because it is about a model that is trained from nothing")


def attempted(report: Report, check: str, function: Callable):
    """What `function` returns, or None after a finding that says how it broke and where its traceback is."""
    try:
        return function()
    except TfgptError:
        raise
    except tf.errors.ResourceExhaustedError as error:
        advice = (
            "--gradient_accumulation_steps=… with the same --batch_size",
            "--rematerialize",
            "--dtype=mixed_bfloat16",
        )
        report.add(CheckResult(check, FAIL, f"out of memory: {first_line(error)}", advice))
    except Exception as error:
        crash = write_crash_file("doctor", sys.argv[1:], error)
        where = f"; {crash} has the traceback" if crash else ""
        report.add(CheckResult(check, FAIL, f"broke with {type(error).__name__}: {first_line(error)}{where}"))
        if os.environ.get("TFGPT_DEBUG", "0") not in ("", "0"):
            traceback.print_exception(error)
    return None


def first_line(error: Exception) -> str:
    """The beginning of an error's message, on one line; Keras's words around it and its colours are left out."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split("Error encountered:")[-1]
    return " ".join(text.split())[:300]


def this_machine(strategy: tf.distribute.Strategy) -> Machine:
    """What the strategy's devices are and hold."""
    gpu = bool(tf.config.list_logical_devices("GPU"))
    memory = machines.gpu_memory() if gpu else machines.main_memory()
    return Machine(memory, strategy.num_replicas_in_sync, gpu)


def training_batch(recipe: TrainConfig, data: Any, kind: Objective) -> Batch:
    """The run's first batch, whole."""
    return first_batch(kind.build_data(recipe, data, tf.distribute.get_strategy()).batches(0))
