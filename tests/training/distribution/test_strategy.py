"""Flags to strategies."""

import pytest
import tensorflow as tf

from tfgpt.common.errors import SettingError, UserError
from tfgpt.training.config import StrategyConfig
from tfgpt.training.distribution.strategy import check_batch, resolve


@pytest.mark.parametrize("name", ["one", "auto"])
def test_one_device_needs_no_strategy(name):
    tf.config.list_logical_devices("CPU")
    strategy = resolve(StrategyConfig(strategy=name))
    assert strategy.num_replicas_in_sync == 1
    assert not isinstance(strategy, tf.distribute.MirroredStrategy)


def test_multiworker_without_a_cluster_says_where_it_looked(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_PROCID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingError, match="^--strategy: multiworker needs to know the cluster: from TF_CONFIG"):
        resolve(StrategyConfig(strategy="multiworker"))


def test_no_tpu_is_one_line():
    with pytest.raises(UserError, match="^--tpu: no TPU answers at 'local' .*tensorflow-tpu") as caught:
        resolve(StrategyConfig(strategy="tpu"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="^--tpu: nothing answers at grpc://localhost:1"):
        resolve(StrategyConfig(strategy="tpu", tpu="grpc://localhost:1"))


def test_one_worker_in_tf_config_is_no_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}')
    assert resolve(StrategyConfig()).num_replicas_in_sync == 1


@pytest.mark.parametrize(
    ("rows", "steps", "words"),
    [
        (9, 1, "--batch_size: 9 rows cannot be shared by 2"),
        (4, 4, "--gradient_accumulation_steps: 4 does not divide the 2 rows"),
    ],
)
def test_replicas_must_be_able_to_share_the_batch(rows, steps, words):
    class TwoReplicas:
        num_replicas_in_sync = 2

    with pytest.raises(SettingError, match=words):
        check_batch(rows, steps, TwoReplicas())
    assert check_batch(8, 2, TwoReplicas()) == 4


def test_splitting_a_cpu_that_is_in_use_is_refused_by_name():
    tf.config.list_logical_devices("CPU")
    with pytest.raises(SettingError, match="^--logical_cpus: cannot be 3 any more"):
        resolve(StrategyConfig(logical_cpus=3))
