"""Choosing how the step runs: measured on the real trainer, which is left exactly as it was."""

import pytest
import tensorflow as tf

from tests.training.small_step import assert_states_close, batches, dataset, make_trainer, state
from tfgpt.training import compilation
from tfgpt.training.compilation import choose_compilation


def feed(first_step: int):
    return iter(dataset(batches(2)).repeat())


def test_auto_measures_both_keeps_one_and_puts_everything_back(monkeypatch):
    monkeypatch.setattr(compilation, "SECONDS", 0.05)
    trainer = make_trainer(optimizer={"ema_decay": 0.9}, step={"compile": "auto"})
    trainer.train_steps(feed(0), 2)
    before = state(trainer)
    lines: list[str] = []
    mode = choose_compilation(trainer, feed, "auto", log=lines.append)
    assert mode == trainer.functions.mode
    assert mode in ("graph", "xla")
    assert len(lines) == 1
    assert "graph" in lines[0] and "xla" in lines[0] and lines[0].endswith(f"using {mode}")
    assert_states_close(state(trainer), before)
    assert {key[1] for key in trainer.functions.functions} == {mode}


@pytest.mark.parametrize(("asked", "recorded", "used"), [("auto", "xla", "xla"), ("graph", "xla", "graph")])
def test_a_recorded_or_given_mode_is_used_without_measuring(asked, recorded, used):
    trainer = make_trainer()

    def no_batches(first_step: int):
        raise AssertionError("measured")

    assert choose_compilation(trainer, no_batches, asked, recorded) == used
    assert trainer.functions.mode == used


def test_a_step_that_xla_cannot_compile_runs_in_graph_mode(monkeypatch):
    monkeypatch.setattr(compilation, "SECONDS", 0.05)
    trainer = make_trainer()
    objective = trainer.loss_function

    def with_an_operation_for_the_host(decoder, batch, **options):
        # A Python function in the graph: TensorFlow's kernels can call it, XLA cannot compile it.
        weights = tf.numpy_function(lambda values: values, [batch["weights"]], tf.float32)
        weights = tf.ensure_shape(weights, batch["weights"].shape)
        return objective(decoder, {**batch, "weights": weights}, **options)

    with_an_operation_for_the_host.means = objective.means
    trainer.loss_function = with_an_operation_for_the_host
    lines: list[str] = []
    assert choose_compilation(trainer, feed, "auto", log=lines.append) == "graph"
    assert "xla does not compile" in lines[0]
