"""Claims about checkpoints on disk."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.common.errors import RunError, UserError
from tfgpt.training import checkpoints as module
from tfgpt.training.checkpoints import Checkpoints, assign


def variables(value: float = 1.0) -> dict[str, tf.Variable]:
    return {
        "kernel": tf.Variable(tf.fill([3, 4], value)),
        "iterations": tf.Variable(7, dtype=tf.int64),
        "scale": tf.Variable(value),
    }


def saved(folder, *steps: int, kept: int = 9) -> Checkpoints:
    store = Checkpoints(folder, kept)
    for step in steps:
        store.save(step, variables(float(step)), {"note": f"at {step}"})
    store.wait()
    return store


def test_what_is_saved_is_what_comes_back_bit_for_bit(tmp_path):
    checkpoint = saved(tmp_path, 10, 20).newest()
    assert checkpoint.step == 20
    assert checkpoint.facts["note"] == "at 20"
    fresh = variables(0.0)
    assign(checkpoint.arrays(), fresh, checkpoint.path)
    for name, variable in variables(20.0).items():
        np.testing.assert_array_equal(fresh[name].numpy(), variable.numpy())


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path):
    store, state = Checkpoints(tmp_path, 1), {"kernel": tf.Variable(tf.ones([256, 256]))}
    store.save(1, state, {})
    for _ in range(50):
        state["kernel"].assign_add(tf.ones([256, 256]))
    store.wait()
    np.testing.assert_array_equal(store.newest().arrays()["kernel"], np.ones([256, 256], np.float32))


def test_only_the_newest_stay_and_the_best_besides(tmp_path):
    store = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3, 4):
        store.save(step, variables(float(step)), {}, best=step == 2)
    store.wait()
    assert store.steps() == [3, 4]
    assert store.best().step == 2
    np.testing.assert_array_equal(store.best().arrays()["scale"], np.float32(2))


@pytest.mark.parametrize("damage", ["flip", "cut", "no state", "no facts", "broken facts"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, damage):
    store = saved(tmp_path, 10, 20)
    state, facts = store.path_of(20) / module.STATE, store.path_of(20) / module.FACTS
    if damage == "flip":
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
    elif damage == "cut":
        state.write_bytes(state.read_bytes()[:-1])
    elif damage == "no state":
        state.unlink()
    elif damage == "no facts":
        facts.unlink()
    else:
        facts.write_text("{")
    lines: list[str] = []
    assert store.newest(lines.append).step == 10
    assert len(lines) == 1 and "step-00000020" in lines[0]
    assert (tmp_path / "step-00000020.damaged").is_dir()


def test_a_write_cut_off_by_a_kill_is_no_checkpoint(tmp_path):
    store = saved(tmp_path, 10)
    torn = tmp_path / ".step-00000020.abc.tmp"
    torn.mkdir()
    (torn / module.STATE).write_bytes(b"half")
    assert store.newest().step == 10
    assert not torn.exists()


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path):
    checkpoint = saved(tmp_path, 10).newest()
    wider = {**variables(0.0), "kernel": tf.Variable(tf.zeros([3, 5]))}
    with pytest.raises(UserError, match=r"kernel has the shape \(3, 4\), this model's is \(3, 5\)"):
        assign(checkpoint.arrays(), wider, checkpoint.path)
    with pytest.raises(UserError, match="it lacks bias"):
        assign(checkpoint.arrays(), {**variables(0.0), "bias": tf.Variable(0.0)}, checkpoint.path)
    with pytest.raises(UserError, match="it has scale"):
        few = variables(0.0)
        del few["scale"]
        assign(checkpoint.arrays(), few, checkpoint.path)
    assert float(wider["scale"].numpy()) == 0.0


def test_a_full_disk_names_the_last_whole_checkpoint(tmp_path, monkeypatch):
    store = saved(tmp_path, 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_arrays", full)
    store.save(20, variables(), {})
    with pytest.raises(RunError, match=r"the disk is full.*the last whole checkpoint is .*step-00000010"):
        store.wait()
    assert store.steps() == [10]
