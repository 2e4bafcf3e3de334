"""Flags to strategies."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tfgpt.common.errors import SettingError
from tfgpt.training.config import StrategyConfig
from tfgpt.training.strategy import resolve


@pytest.mark.parametrize("name", ["one", "auto"])
def test_one_device_needs_no_strategy(name):
    tf.config.list_logical_devices("CPU")
    strategy = resolve(StrategyConfig(strategy=name))
    assert strategy.num_replicas_in_sync == 1
    assert not isinstance(strategy, tf.distribute.MirroredStrategy)


@pytest.mark.parametrize("name", ["multiworker", "tpu"])
def test_what_is_not_there_yet_says_so(name):
    with pytest.raises(SettingError, match=f"^--strategy: {name} comes with a later version"):
        resolve(StrategyConfig(strategy=name))


def test_splitting_a_cpu_that_is_in_use_is_refused_by_name():
    tf.config.list_logical_devices("CPU")
    with pytest.raises(SettingError, match="^--logical_cpus: cannot be 3 any more"):
        resolve(StrategyConfig(logical_cpus=3))
