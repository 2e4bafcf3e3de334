"""Runs all checks, cheapest first."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.crash_report import write_crash_file
from tfgpt.common.errors import SettingError, TfgptError
from tfgpt.common.process_memory import held_memory
from tfgpt.diagnosis.causality import check_causality
from tfgpt.diagnosis.check_results import FAIL, CheckResult, Report
from tfgpt.diagnosis.config import DoctorConfig
from tfgpt.diagnosis.data import check_batch, check_corpus, check_tokens
from tfgpt.diagnosis.initialization import check_gradients, check_initial_loss
from tfgpt.diagnosis.memory import Machine, check_disk, check_memory, check_tpu
from tfgpt.diagnosis.overfit import check_overfit
from tfgpt.diagnosis.preview import preview_conversations, preview_text
from tfgpt.diagnosis.probe_model import Batch, ProbeModel, affordable_tokens, with_constant_rate
from tfgpt.diagnosis.speed import check_measured_memory, check_optimal, check_speed, check_time, measure_speed
from tfgpt.diagnosis.system_memory import gpu_memory, main_memory
from tfgpt.model.config import DecoderConfig
from tfgpt.training.distribution.strategy import resolve
from tfgpt.training.objectives.base import Objective, get_objective
from tfgpt.training.peak_flops import measured_peak_flops
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer_and_data

DATA_CHECKS = ("first batch", "tokens", "corpus")
MODEL_CHECKS = ("loss at step 0", "causality", "gradients", "overfit one batch")
SPEED_CHECKS = ("speed", "memory measured", "time", "compute-optimal")


def run_checks(
    config: TrainConfig, doctor: DoctorConfig, log: Callable[[str], None] = print, machine: Machine | None = None
) -> Report:
    """Makes every check that can be made; writes nothing but the cache of prepared data.

    `machine` replaces the devices of this machine in the memory checks.
    """
    strategy_name = config.strategy.strategy
    if strategy_name == "multiworker" or (strategy_name == "auto" and os.environ.get("TF_CONFIG")):
        advice = "leave TF_CONFIG out, use --strategy=auto and one worker's share of --batch_size"
        raise SettingError("strategy", f"doctor examines one machine, not a cluster; {advice}")
    report = Report(log)
    strategy = local_strategy(config, log)
    machine = machine or machine_of(strategy)
    if config.objective.objective not in ("pretrain", "chat"):
        check_fit(report, config, config.initial_config(), machine)
        reason = "because doctor knows batches of --objective=pretrain and chat only, not of "
        report.skip((*DATA_CHECKS, *MODEL_CHECKS, *SPEED_CHECKS), reason + config.objective.objective)
        return report
    objective = get_objective(config.objective.objective)
    data = objective.prepare(config, log)
    batch = first_batch(config, data, objective)
    decoder_config = config.decoder_config(data.tokenizer.vocabulary_size)
    check_data(report, config, doctor, data, batch, objective.conversations)
    if check_fit(report, config, decoder_config, machine).status == FAIL:
        report.skip((*MODEL_CHECKS, *SPEED_CHECKS), "because the model does not fit")
        return report
    baseline_bytes = 0 if machine.gpu else held_memory()
    peak_flops = measured_peak_flops(config.step.dtype)
    tokens = functools.partial(affordable_tokens, decoder_config, peak_flops, seconds=doctor.max_probe_seconds)

    def build() -> ProbeModel:
        run = build_trainer_and_data(with_constant_rate(config), data, strategy, objective)
        return ProbeModel(config, data, strategy, *run, batch, tokens(doctor.overfit_steps), tokens(1))

    probe = attempt(report, "model", build)
    if probe is None:
        report.skip((*MODEL_CHECKS, *SPEED_CHECKS), "because the model could not be built")
        return report
    check_model(report, probe, doctor)
    measure = functools.partial(measure_speed, probe, machine, peak_flops, doctor.max_probe_seconds, baseline_bytes)
    speed = attempt(report, "speed", measure)
    if speed is None:
        report.skip(SPEED_CHECKS[1:], "because the step does not run")
        return report
    report.add(check_speed(probe, speed, peak_flops))
    report.add(check_measured_memory(speed, machine, report.results["memory"].numbers["estimate"]))
    report.add(check_time(probe, speed))
    if config.objective.objective == "pretrain" and not config.lora.lora_rank:
        report.add(check_optimal(probe, speed))
    else:
        report.skip(SPEED_CHECKS[3:], "because it is about a model that is trained from random weights")
    return report


def check_data(
    report: Report, config: TrainConfig, doctor: DoctorConfig, data: Any, batch: Batch, conversations: bool
) -> None:
    if doctor.preview_rows:
        preview = preview_conversations if conversations else preview_text
        report.preview = preview(batch, data.tokenizer, doctor.preview_rows)
        for line in ("", *report.preview, ""):
            report.log(line)
    vocabulary_size = data.tokenizer.vocabulary_size
    report.add(check_batch(batch, config.decoder_config(vocabulary_size).vocabulary_size, conversations))
    if conversations:
        report.skip(DATA_CHECKS[1:], "because they count plain text")
        return
    report.add(check_tokens(data, config))
    report.add(check_corpus(data, config, vocabulary_size))


def check_fit(report: Report, config: TrainConfig, decoder_config: DecoderConfig, machine: Machine) -> CheckResult:
    report.add(check_disk(config, decoder_config))
    if config.strategy.strategy == "tpu":
        report.add(check_tpu(config, decoder_config))
    return report.add(check_memory(config, decoder_config, machine))


def check_model(report: Report, probe: ProbeModel, doctor: DoctorConfig) -> None:
    overfit = functools.partial(check_overfit, steps=doctor.overfit_steps, seconds=doctor.max_probe_seconds)
    checks: tuple[Callable[[ProbeModel], CheckResult], ...]
    checks = check_initial_loss, check_causality, check_gradients, overfit
    for name, check in zip(MODEL_CHECKS, checks, strict=True):
        if check is overfit and not doctor.overfit_steps:
            report.skip((name,), "because of --overfit_steps=0")
        elif result := attempt(report, name, functools.partial(check, probe)):
            report.add(result)


def attempt(report: Report, check: str, function: Callable[[], Any]) -> Any:
    """Returns what `function` returns; on an exception adds a failed result and returns None."""
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
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split("Error encountered:")[-1]
    return " ".join(text.split())[:300]


def local_strategy(config: TrainConfig, log: Callable[[str], None]) -> tf.distribute.Strategy:
    """Returns the run's strategy, or one device of this machine if it has no TPU."""
    try:
        return resolve(config.strategy)
    except TfgptError as error:
        if config.strategy.strategy != "tpu":
            raise
        log(f"No TPU here ({error}): the checks run on this machine; scripts/tpu_compile.sh compiles for TPUs")
        return resolve(dataclasses.replace(config.strategy, strategy="one"))


def machine_of(strategy: tf.distribute.Strategy) -> Machine:
    gpu = bool(tf.config.list_logical_devices("GPU"))
    return Machine(gpu_memory() if gpu else main_memory(), strategy.num_replicas_in_sync, gpu)


def first_batch(config: TrainConfig, data: Any, objective: Objective) -> Batch:
    batches = objective.build_data(config, data, tf.distribute.get_strategy()).batches(0)
    return {name: np.asarray(tensor) for name, tensor in next(batches).items()}
