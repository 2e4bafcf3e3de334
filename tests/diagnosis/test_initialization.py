"""The checks of the untrained model: a sound one passes, each broken part fails the check that is for it."""

import math

import tensorflow as tf

from tests.diagnosis.probes import GPT2, probe_of, save_model
from tfgpt.diagnosis.initialization import check_gradients, check_initial_loss
from tfgpt.diagnosis.overfit import check_overfit
from tfgpt.model import decoder, projection
from tfgpt.training import losses


def test_a_model_to_start_from_must_know_something_of_the_text(text_file, tmp_path):
    base = [f"--init_from={tmp_path}", "--sequence_length=32", "--batch_size=4", "--compile=graph"]
    probe = probe_of(text_file)
    save_model(probe, tmp_path)
    untrained = check_initial_loss(probe_of(text_file, base=base))
    assert untrained.status == "warn" and "knows nothing of this text" in untrained.line
    assert check_overfit(probe, 120, 60).status == "ok"
    save_model(probe, tmp_path)
    trained = check_initial_loss(probe_of(text_file, base=base))
    assert trained.status == "ok" and trained.numbers["loss"] < math.log(260) - 1


def test_an_absurd_initialization_fails_the_loss_and_the_advice_helps(text_file):
    found = check_initial_loss(probe_of(text_file, "--embedding_initializer_range=4"))
    assert found.status == "FAIL"
    flag = found.advice[0].split()[0]
    assert flag.startswith("--embedding_initializer_range=")
    assert check_initial_loss(probe_of(text_file, flag)).status == "ok"


def test_a_loss_that_is_not_the_logits_cross_entropy_fails(text_file, monkeypatch):
    right = losses.FusedLinearCrossEntropy.per_token
    doubled = lambda self, hidden, head, targets: right(self, 2 * hidden, head, targets)  # noqa: E731
    monkeypatch.setattr(losses.FusedLinearCrossEntropy, "per_token", doubled)
    found = check_initial_loss(probe_of(text_file, "--embedding_initializer_range=0.3"))
    assert found.status == "FAIL" and "from the logits it should be" in found.line


def test_a_variable_that_the_loss_does_not_depend_on_fails_by_name(text_file, monkeypatch):
    right = projection.Projection.call

    def disconnected(self, inputs):
        outputs = right(self, inputs)
        return tf.stop_gradient(outputs) + 0 * inputs[..., :1] if self.name == "down" else outputs

    monkeypatch.setattr(projection.Projection, "call", disconnected)
    found = check_gradients(probe_of(text_file))
    assert found.status == "FAIL"
    names = ("mlp_norm/scale", "mlp/gate/kernel", "mlp/up/kernel", "mlp/down/kernel")
    assert found.numbers["without_gradient"] == [f"decoder/block_0/{name}" for name in names]


def test_a_frozen_variable_fails_by_name(text_file, monkeypatch):
    right = decoder.TransformerBlock.build

    def frozen(self, input_shape):
        right(self, input_shape)
        self.mlp.trainable = False

    monkeypatch.setattr(decoder.TransformerBlock, "build", frozen)
    found = check_gradients(probe_of(text_file))
    assert found.status == "FAIL" and "decoder/block_0/mlp/gate/kernel" in found.numbers["frozen"]


def test_key_biases_are_excused_exactly_where_softmax_cancels_them(text_file, monkeypatch):
    # A key's bias that is cut off: with learned positions nothing changes, with RoPE it is an error.
    right = projection.Projection.call

    def cut_off(self, inputs):
        if self.name != "key":
            return right(self, inputs)
        return projection.project(inputs, self.compute(self.kernel), tf.stop_gradient(self.compute(self.bias)))

    monkeypatch.setattr(projection.Projection, "call", cut_off)
    found = check_gradients(probe_of(text_file, GPT2))
    assert found.status == "ok" and "1 key bias," in found.line
    found = check_gradients(probe_of(text_file, GPT2, "--position_embedding=rope"))
    assert found.status == "FAIL" and found.numbers["without_gradient"] == ["decoder/block_0/attention/key/bias"]


def test_positions_that_are_never_trained_are_mentioned(text_file):
    found = check_gradients(probe_of(text_file, GPT2, "--max_sequence_length=64"))
    assert found.status == "warn" and "positions 32 to 63" in found.line
    assert "--max_sequence_length=32" in found.advice[0]
