"""Claims about speed, time and the compute-optimal run, calculated by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.diagnosis.subjects import subject_of
from tfgpt.diagnosis.memory import Machine
from tfgpt.diagnosis.run_checks import this_machine
from tfgpt.diagnosis.speed import (
    Speed,
    check_measured_memory,
    check_optimal,
    check_speed,
    check_time,
    measure_speed,
    work_that_fits,
)
from tfgpt.diagnosis.system_memory import Memory
from tfgpt.model import cost


@pytest.fixture(scope="module")
def subject(text_file: Path):
    return subject_of(text_file, "--max_steps=1000", "--validate_every=250")


SPEED = Speed("graph", "", 1280.0, 0.1, 10, 2 << 30, 1 << 30, 5.0)
"""128 tokens an update, 10 updates a second."""


def test_time_is_that_of_updates_and_validations(subject):
    found = check_time(subject, SPEED)
    assert found.numbers["update_seconds"] == pytest.approx(100)
    # At the beginning, and after 250, 500, 750 and 1000 updates; forward only is a third of the work. The
    # last batch of 4 rows of 32 tokens is filled up.
    assert found.numbers["validations"] == 5
    held_out = -(-(subject.data.validation.num_tokens - 1) // 128) * 128
    assert found.numbers["validation_seconds"] == pytest.approx(5 * held_out / (3 * 1280))


def test_validation_that_takes_longer_than_training_gets_advice(subject):
    slow = dataclasses.replace(SPEED, tokens_per_second=1.0)
    found = check_time(subject, slow)
    assert found.status == "warn" and "--validate_every=500" in found.advice[0]


def test_a_compute_optimal_run_reads_20_tokens_a_parameter(subject):
    parameters = sum(int(variable.value.shape.num_elements()) for variable in subject.decoder.trainable_variables)
    found = check_optimal(subject, SPEED)
    assert found.numbers["tokens"] == 20 * parameters
    assert found.numbers["seconds"] == pytest.approx(20 * parameters / 1280)
    assert found.numbers["steps"] == -(-20 * parameters // 128)
    assert found.numbers["epochs"] == pytest.approx(20 * parameters / (subject.data.train.num_tokens - 1))
    assert f"--max_steps={found.numbers['steps']}" in found.line
    # 4 times the text, 20 tokens a parameter: a fifth of its tokens.
    assert found.numbers["parameters_for_corpus"] == pytest.approx((subject.data.train.num_tokens - 1) / 5)


def test_utilization_is_flops_over_the_peak(subject):
    flops = cost.training_flops_per_token(subject.config, 32)
    found = check_speed(subject, SPEED, peak_flops=1280.0 * flops * 4)
    assert found.numbers["model_flops_utilization"] == pytest.approx(0.25)


def test_updates_that_are_not_finite_fail(subject):
    assert check_speed(subject, dataclasses.replace(SPEED, loss=float("nan")), 1e9).status == "FAIL"


def test_a_peak_above_what_is_there_fails(subject):
    estimated = {"total": 1 << 30, "checkpoint copy": 1 << 30}
    for there, status in ((4 << 30, "ok"), (5 << 29, "warn"), (1 << 30, "FAIL")):
        machine = Machine(Memory(there, there, "RAM"), 1, gpu=False)
        assert check_measured_memory(SPEED, machine, estimated).status == status


def test_the_speed_is_measured_on_the_runs_own_step(subject):
    speed = measure_speed(subject, this_machine(subject.strategy), 1e11, 5.0, 0)
    assert speed.mode == "graph" and speed.updates >= 3
    assert speed.tokens_per_second == pytest.approx(128 / speed.seconds_per_update)
    assert int(subject.run_trainer.optimizer.iterations.numpy()) > speed.updates - 1
    assert speed.peak_bytes > 100 << 20


@pytest.mark.parametrize(
    ("token_seconds", "tokens", "fills_memory"),
    [(1e-6, 4 * 32, True), (0.05, 2 * 32, True), (0.15, 32, False), (10.0, 128, False)],
    ids=["whole", "micro-batch", "row", "small batch"],
)
def test_updates_that_take_too_long_are_timed_in_part(text_file: Path, token_seconds, tokens, fills_memory):
    subject = subject_of(text_file, "--gradient_accumulation_steps=2")
    work = work_that_fits(subject, token_seconds, seconds=20.0)
    assert (work.tokens, work.fills_memory) == (tokens, fills_memory)
    if tokens != 128:
        assert next(work.batches(0))["token_ids"].shape == (tokens // 32, 32)
