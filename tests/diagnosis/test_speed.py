"""Speed, time and the compute-optimal run, against numbers calculated by hand."""

import dataclasses
from pathlib import Path

import pytest

from tests.diagnosis.probes import probe_of
from tfgpt.diagnosis.memory import Machine
from tfgpt.diagnosis.run_checks import machine_of
from tfgpt.diagnosis.speed import (
    Speed,
    affordable_work,
    check_measured_memory,
    check_optimal,
    check_speed,
    check_time,
    measure_speed,
)
from tfgpt.diagnosis.system_memory import Memory
from tfgpt.model import cost


@pytest.fixture(scope="module")
def probe(text_file: Path):
    return probe_of(text_file, "--max_steps=1000", "--validate_every=250")


SPEED = Speed("graph", "", 1280.0, 0.1, 10, 2 << 30, 1 << 30, 5.0)
"""128 tokens an update, 10 updates a second."""


def test_time_is_that_of_updates_and_validations_and_long_validations_get_advice(probe):
    found = check_time(probe, SPEED)
    assert found.numbers["update_seconds"] == pytest.approx(100)
    # At the beginning, and after 250, 500, 750 and 1000 updates; forward only is a third of the work. The
    # last batch of 4 rows of 32 tokens is filled up.
    assert found.numbers["validations"] == 5
    held_out = -(-(probe.data.validation.num_tokens - 1) // 128) * 128
    assert found.numbers["validation_seconds"] == pytest.approx(5 * held_out / (3 * 1280))
    slow = check_time(probe, dataclasses.replace(SPEED, tokens_per_second=1.0))
    assert slow.status == "warn" and "--validate_every=500" in slow.advice[0]


def test_a_compute_optimal_run_reads_20_tokens_a_parameter(probe):
    tokens, text = 20 * probe.decoder.count_params(), probe.data.train.num_tokens - 1
    found = check_optimal(probe, SPEED)
    assert (found.numbers["tokens"], found.numbers["steps"]) == (tokens, -(-tokens // 128))
    assert found.numbers["seconds"] == pytest.approx(tokens / 1280)
    assert found.numbers["epochs"] == pytest.approx(tokens / text)
    assert f"--max_steps={found.numbers['steps']}" in found.line
    # 4 times the text, 20 tokens a parameter: a fifth of its tokens.
    assert found.numbers["parameters_for_corpus"] == pytest.approx(text / 5)


def test_utilization_is_flops_over_the_peak_and_updates_that_are_not_finite_fail(probe):
    flops = cost.training_flops_per_token(probe.decoder_config, 32)
    found = check_speed(probe, SPEED, peak_flops=1280.0 * flops * 4)
    assert found.numbers["model_flops_utilization"] == pytest.approx(0.25)
    assert check_speed(probe, dataclasses.replace(SPEED, loss=float("nan")), 1e9).status == "FAIL"


def test_a_peak_above_what_is_there_fails(probe):
    estimated = {"total": 1 << 30, "checkpoint copy": 1 << 30}
    for there, status in ((4 << 30, "ok"), (5 << 29, "warn"), (1 << 30, "FAIL")):
        machine = Machine(Memory(there, there, "RAM"), 1, gpu=False)
        assert check_measured_memory(SPEED, machine, estimated).status == status


def test_the_speed_is_measured_on_the_runs_own_step(probe):
    speed = measure_speed(probe, machine_of(probe.strategy), 1e11, 5.0, 0)
    assert speed.mode == "graph" and speed.updates_timed >= 3
    assert speed.tokens_per_second == pytest.approx(128 / speed.seconds_per_update)
    assert int(probe.run_trainer.optimizer.iterations.numpy()) > speed.updates_timed - 1
    assert speed.peak_bytes > 100 << 20


def test_updates_that_take_too_long_are_timed_in_part(text_file):
    probe = probe_of(text_file, "--gradient_accumulation_steps=2")
    # The batch, a micro-batch, a row, and the small batch.
    for seconds_per_token, tokens in ((1e-6, 4 * 32), (0.05, 2 * 32), (0.15, 32), (10.0, 128)):
        work = affordable_work(probe, seconds_per_token, seconds=20.0)
        assert (work.tokens, work.fills_memory) == (tokens, seconds_per_token < 0.1)
        rows = next(work.batches(0))["token_ids"].shape[0]
        assert rows == tokens // 32
