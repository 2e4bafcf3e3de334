"""Learning-rate schedules: against nanoGPT's function, Keras's own and arithmetic by hand."""

import math

import keras
import pytest

from tfgpt.training.config import ScheduleConfig
from tfgpt.training.schedules import WarmupDecay, build_schedule


def nanogpt_rate(step: int, highest: float, lowest: float, warmup: int, total: int) -> float:
    """`get_lr` of nanoGPT's train.py."""
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    if step > total:
        return lowest
    progress = (step - warmup) / (total - warmup)
    return lowest + 0.5 * (1.0 + math.cos(math.pi * progress)) * (highest - lowest)


@pytest.mark.parametrize("step", [0, 1, 50, 99, 100, 101, 1050, 1999, 2000, 5000])
def test_cosine_is_nanogpts(step):
    config = ScheduleConfig(schedule="cosine", warmup_steps=100, final_learning_rate_fraction=0.1)
    schedule = build_schedule(config, 1e-3, 2000)
    assert schedule.at(step) == pytest.approx(nanogpt_rate(step, 1e-3, 1e-4, 100, 2000), rel=1e-9)


def test_wsd_is_flat_then_falls_in_a_line():
    config = ScheduleConfig(schedule="wsd", warmup_steps=9, decay_fraction=0.4, final_learning_rate_fraction=0.0)
    schedule = build_schedule(config, 2.0, 100)
    assert [schedule.at(step) for step in (0, 4, 9, 50, 60, 70, 80, 100, 101)] == pytest.approx(
        [0.2, 1.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.0, 0.0]
    )


def test_linear_and_constant():
    linear = WarmupDecay("linear", 1.0, 110, warmup_steps=10, final_learning_rate_fraction=0.5)
    assert [linear.at(step) for step in (0, 10, 60, 110, 200)] == pytest.approx([1 / 11, 1.0, 0.75, 0.5, 0.5])
    constant = WarmupDecay("constant", 1.0, 110, warmup_steps=10)
    assert [constant.at(step) for step in (4, 10, 1000)] == pytest.approx([5 / 11, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(50, 0), (50, 10), (5, 10), (1, 0)])
def test_graph_and_plain_python_agree_and_never_leave_the_range(schedule, total, warmup):
    built = WarmupDecay(schedule, 3e-4, total, warmup, 0.3, 0.1)
    for step in range(total + 3):
        assert float(built(step)) == pytest.approx(built.at(step), rel=1e-5)
        assert 0.0 <= built.at(step) <= 3e-4 * (1 + 1e-12)


def test_a_schedule_comes_back_from_its_config():
    schedule = WarmupDecay("wsd", 2.0, 100, 9, 0.2, 0.05)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert again.get_config() == schedule.get_config()
    assert again.at(85) == schedule.at(85)
