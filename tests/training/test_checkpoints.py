"""Claims about checkpoints on disk."""

import json
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ROOT
from tfgpt.common.errors import RunError, UserError
from tfgpt.training import checkpoints as module
from tfgpt.training.checkpoints import Checkpoints, assign


def variables(value: float = 1.0, **more: tf.Tensor) -> dict[str, tf.Variable]:
    values = {"kernel": tf.fill([3, 4], value), "iterations": tf.constant(7, tf.int64), "scale": value, **more}
    return {name: tf.Variable(each) for name, each in values.items()}


def saved(folder, *steps: int, kept: int = 9) -> Checkpoints:
    store = Checkpoints(folder, kept)
    for step in steps:
        store.save(step, variables(float(step)), {"note": f"at {step}"})
    store.wait()
    return store


def test_what_is_saved_is_what_comes_back_bit_for_bit(tmp_path):
    checkpoint = saved(tmp_path, 10, 20).newest()
    assert checkpoint.step == 20
    assert checkpoint.metadata["note"] == "at 20"
    fresh = variables(0.0)
    assign(checkpoint.arrays(), fresh, checkpoint.path)
    for name, variable in variables(20.0).items():
        np.testing.assert_array_equal(fresh[name].numpy(), variable.numpy())


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    store, save, changed = Checkpoints(tmp_path, 1), module.save_arrays, threading.Event()
    state = {"plain": tf.Variable([1.0, 2.0]), "keras": keras.Variable(np.float32([1, 2]))}

    def late(arrays, path):
        assert changed.wait(30)
        save(arrays, path)

    monkeypatch.setattr(module, "save_arrays", late)
    store.save(1, state, {})
    for variable in state.values():
        variable.assign([8.0, 9.0])
    changed.set()
    store.wait()
    for value in store.newest().arrays().values():
        np.testing.assert_array_equal(value, np.float32([1, 2]))


def test_only_the_newest_stay_and_the_best_besides(tmp_path):
    store = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3, 4, 5):
        store.save(step, variables(float(step)), {}, best_step=min(step, 2))
    store.wait()
    assert store.steps() == [2, 4, 5]
    best = store.open_if_complete(store.newest().metadata["best_step"], print, "")
    np.testing.assert_array_equal(best.arrays()["scale"], np.float32(2))


def test_the_best_of_every_checkpoint_that_stays_stays(tmp_path):
    # When 4, the new best, is damaged, the run goes on from 3, whose best is 1.
    store = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3, 4):
        store.save(step, variables(), {}, best_step=4 if step == 4 else 1)
    store.wait()
    (store.path_of(4) / module.STATE).write_bytes(b"")
    newest = store.newest(lambda line: None)
    assert (newest.step, store.open_if_complete(newest.metadata["best_step"], print, "").step) == (3, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("step", "best_step"), [(30, 30), (30, 10), (20, 10)])
def test_a_save_killed_at_any_call_leaves_newest_and_best_whole_and_in_agreement(tmp_path, step, best_step):
    # Step 20 is there already: it is replaced, as after a roll-back.
    command = [sys.executable, str(ROOT / "tests/training/killed_saves.py"), str(tmp_path), str(step), str(best_step)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    kills, before = map(int, done.stdout.split())
    assert kills > before > 20


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (module.STATE, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        (module.STATE, lambda content: content[:-1]),
        (module.STATE, None),
        (module.METADATA, None),
        (module.METADATA, lambda content: b"{"),
    ],
    ids=["flip", "cut", "no state", "no facts", "broken facts"],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, name, damage):
    store, lines = saved(tmp_path, 10, 20), []
    path = store.path_of(20) / name
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    assert store.newest(lines.append).step == 10
    assert len(lines) == 1 and "step-00000020" in lines[0]
    assert (tmp_path / "step-00000020.damaged").is_dir()


def test_a_damaged_best_is_named_once_and_set_aside_and_what_was_set_aside_stays(tmp_path):
    store, lines, names = saved(tmp_path, 10, 20), [], ["step-00000010.damaged", "step-00000010.damaged1"]
    for name in names:
        (store.path_of(10) / module.METADATA).write_text("[]")
        assert store.open_if_complete(10, lines.append, "model/ is the last instead") is None
        assert "damaged, state.json does not hold" in lines[-1]
        assert lines[-1].endswith(f"; set aside as {name}, model/ is the last instead")
        assert store.open_if_complete(10, lines.append, "model/ is the last instead") is None
        assert lines[-1] == f"{store.path_of(10)}: is gone; model/ is the last instead"
        store.save(10, variables(), {})
        store.wait()
    assert sorted(entry.name for entry in tmp_path.glob("*damaged*")) == names


def test_a_checkpoint_of_another_format_is_refused_by_name_and_left_where_it_is(tmp_path):
    store = saved(tmp_path, 10, 20)
    facts = store.path_of(20) / module.METADATA
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "format": 99}))
    with pytest.raises(UserError, match=r"step-00000020: is of format 99, this version of tfgpt reads format 2; "):
        store.newest()
    assert store.steps() == [10, 20]


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    store = saved(tmp_path, 10, 20)

    def closed(path):  # A mode of 0 would not stop root.
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "sha256_of_file", closed)
    with pytest.raises(UserError, match=r"step-00000020: state\.safetensors cannot be read \(Permission denied\)"):
        store.newest()
    assert store.steps() == [10, 20]


@pytest.mark.parametrize(
    ("more", "missing", "problem"),
    [
        ({"kernel": tf.zeros([3, 5])}, None, r"kernel has the shape \(3, 4\), this model's is \(3, 5\)"),
        ({"bias": 0.0}, None, "it lacks bias"),
        ({}, "kernel", "it has kernel"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path, more, missing, problem):
    checkpoint, other = saved(tmp_path, 10).newest(), variables(0.0, **more)
    other.pop(missing, None)
    with pytest.raises(UserError, match=problem):
        assign(checkpoint.arrays(), other, checkpoint.path)
    assert float(other["scale"].numpy()) == 0.0


def test_a_full_disk_names_the_last_whole_checkpoint(tmp_path, monkeypatch):
    store = saved(tmp_path, 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_arrays", full)
    store.save(20, variables(), {})
    with pytest.raises(RunError, match=r"the disk is full.*the last complete checkpoint is .*step-00000010"):
        store.wait()
    assert store.steps() == [10]
