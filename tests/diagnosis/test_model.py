"""Claims about the checks of a model: a sound one passes, each broken part fails the check that is for it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.diagnosis.subjects import subject_of
from tfgpt.diagnosis.causality import check_causality
from tfgpt.diagnosis.initialization import check_gradients, check_initial_loss
from tfgpt.diagnosis.overfit import check_overfit
from tfgpt.diagnosis.probe_model import ProbeModel
from tfgpt.model import decoder, layers
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.training import losses

GPT2 = (
    "--position_embedding=learned --normalization=layer_norm --mlp=gelu --use_bias --query_key_norm=false "
    "--num_key_value_heads=2"
).split()
ZERO = ["--zero_initialized_outputs", "--tie_embeddings=false", "--embedding_initializer_range=1.0"]
NEARLY_ZERO_HEAD = ["--head_initializer_range=0.001"]


@pytest.mark.parametrize(
    "flags",
    [
        GPT2,
        ["--document_masking", "--dtype=mixed_bfloat16", "--sliding_window=8", "--dropout=0.1", "--rematerialize"],
    ],
    ids=["gpt2", "documents"],
)
def test_a_sound_model_passes_every_check(text_file: Path, flags: list[str]):
    subject = subject_of(text_file, *flags)
    before = [np.array(variable.numpy()) for variable in subject.decoder.trainable_variables]
    found = [check_initial_loss(subject), check_causality(subject)]
    after = [variable.numpy() for variable in subject.decoder.trainable_variables]
    # These two only look.
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    found += [check_gradients(subject), check_overfit(subject, 120, 60)]
    assert [finding.line for finding in found if finding.status != "ok"] == []


def saved(subject: ProbeModel, directory: Path) -> Path:
    """The subject's decoder and tokenizer as a model directory."""
    tokenizer = subject.data.tokenizer
    save_decoder(
        subject.decoder,
        directory,
        end_of_text_id=tokenizer.end_of_text_id,
        end_of_turn_id=tokenizer.end_of_turn_id,
        padding_id=tokenizer.padding_id,
    )
    tokenizer.save(directory)
    return directory


def test_a_model_to_start_from_must_know_something_of_the_text(text_file: Path, tmp_path: Path):
    base = [f"--init_from={tmp_path}", "--sequence_length=32", "--batch_size=4", "--compile=graph"]
    subject = subject_of(text_file)
    saved(subject, tmp_path)
    untrained = check_initial_loss(subject_of(text_file, base=base))
    assert untrained.status == "warn" and "knows nothing of this text" in untrained.line
    assert check_overfit(subject, 120, 60).status == "ok"
    saved(subject, tmp_path)
    trained = check_initial_loss(subject_of(text_file, base=base))
    assert trained.status == "ok" and trained.numbers["loss"] < math.log(260) - 1


def test_zero_initialized_outputs_begin_at_ln_of_the_vocabulary_and_only_delay_gradients(text_file: Path):
    flags = ["--mlp=squared_relu", "--optimizer=muon", "--learning_rate=0.02", "--ema_decay=0.9"]
    subject = subject_of(text_file, *ZERO, "--head_initializer_range=0", *flags)
    found = [check_initial_loss(subject), check_causality(subject), check_gradients(subject)]
    found.append(check_overfit(subject, 120, 60))
    assert [finding.line for finding in found if finding.status != "ok"] == []
    assert found[0].numbers["loss"] == pytest.approx(math.log(260), abs=1e-5)
    # First only the head has a gradient, then what writes to the residual stream, then everything.
    assert found[2].numbers["updates"] == 2


def test_an_absurd_initialization_fails_the_loss_and_the_advice_helps(text_file: Path):
    found = check_initial_loss(subject_of(text_file, "--embedding_initializer_range=4"))
    assert found.status == "FAIL"
    flag = found.advice[0].split()[0]
    assert flag.startswith("--embedding_initializer_range=")
    assert check_initial_loss(subject_of(text_file, flag)).status == "ok"


def test_a_loss_that_is_not_the_logits_cross_entropy_fails(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    right = losses.FusedLinearCrossEntropy.per_token
    doubled = lambda self, hidden, head, targets: right(self, 2 * hidden, head, targets)  # noqa: E731
    monkeypatch.setattr(losses.FusedLinearCrossEntropy, "per_token", doubled)
    found = check_initial_loss(subject_of(text_file, "--embedding_initializer_range=0.3"))
    assert found.status == "FAIL" and "from the logits it should be" in found.line


def all_seen(layer, inputs: tf.Tensor) -> tf.Tensor:
    """A mask that hides nothing, in the place of `AttentionMask.call`."""
    return tf.zeros([1, 1, 1, tf.shape(inputs)[1], tf.shape(inputs)[1]])


def documents_ignored(layer, segment_ids: tf.Tensor) -> tf.Tensor:
    """A mask that is causal and takes the row for one document."""
    places = tf.range(tf.shape(segment_ids)[1])
    return tf.where(places[:, None] >= places, 0.0, -1e9)[None, None, None]


def test_a_mask_that_lets_the_future_in_fails_causality(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder.AttentionMask, "call", all_seen)
    # Also with outputs that start at zero, where no logit of the untrained model depends on attention.
    found = check_causality(subject_of(text_file, *ZERO, *NEARLY_ZERO_HEAD))
    assert found.status == "FAIL" and "later tokens are seen" in found.line


def test_a_mask_that_is_off_by_one_fails_causality(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    right = decoder.AttentionMask.call
    monkeypatch.setattr(decoder.AttentionMask, "call", lambda self, inputs: tf.roll(right(self, inputs), 1, axis=-1))
    assert check_causality(subject_of(text_file)).status == "FAIL"


def test_attention_across_documents_fails_causality(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder.AttentionMask, "call", documents_ignored)
    found = check_causality(subject_of(text_file, "--document_masking"))
    assert found.status == "FAIL" and "another document is seen" in found.line


def test_a_model_that_looks_at_nothing_before_fails_causality(text_file: Path):
    found = check_causality(subject_of(text_file, "--sliding_window=1"))
    assert found.status == "FAIL" and "earlier tokens are not seen" in found.line


def test_positions_far_apart_are_compared_when_logits_do_not_fit(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    from tfgpt.diagnosis import causality

    monkeypatch.setattr(causality, "LOGIT_BYTES", 4 * 4 * 260 * 16)
    assert check_causality(subject_of(text_file)).status == "ok"
    monkeypatch.setattr(decoder.AttentionMask, "call", all_seen)
    assert check_causality(subject_of(text_file)).status == "FAIL"


def test_a_variable_that_the_loss_does_not_depend_on_fails_by_name(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    right = layers.Projection.call

    def disconnected(self, inputs):
        return (
            tf.stop_gradient(right(self, inputs)) + 0 * inputs[..., :1] if self.name == "down" else right(self, inputs)
        )

    monkeypatch.setattr(layers.Projection, "call", disconnected)
    found = check_gradients(subject_of(text_file))
    assert found.status == "FAIL"
    names = ("mlp_norm/scale", "mlp/gate/kernel", "mlp/up/kernel", "mlp/down/kernel")
    assert found.numbers["without_gradient"] == [f"decoder/block_0/{name}" for name in names]


def test_a_frozen_variable_fails_by_name(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    right = decoder.TransformerBlock.build

    def frozen(self, input_shape):
        right(self, input_shape)
        self.mlp.trainable = False

    monkeypatch.setattr(decoder.TransformerBlock, "build", frozen)
    found = check_gradients(subject_of(text_file))
    assert found.status == "FAIL" and "decoder/block_0/mlp/gate/kernel" in found.numbers["frozen"]


def test_key_biases_are_excused_exactly_where_softmax_cancels_them(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    # A key's bias that is cut off: with learned positions nobody can tell, with RoPE it is an error.
    right = layers.Projection.call

    def cut_off(self, inputs):
        if self.name != "key":
            return right(self, inputs)
        return layers.project(inputs, self.compute(self.kernel), tf.stop_gradient(self.compute(self.bias)))

    monkeypatch.setattr(layers.Projection, "call", cut_off)
    found = check_gradients(subject_of(text_file, *GPT2))
    assert found.status == "ok" and "1 key bias," in found.line
    found = check_gradients(subject_of(text_file, *GPT2, "--position_embedding=rope"))
    assert found.status == "FAIL" and found.numbers["without_gradient"] == ["decoder/block_0/attention/key/bias"]


def test_positions_that_are_never_trained_are_mentioned(text_file: Path):
    found = check_gradients(subject_of(text_file, *GPT2, "--max_sequence_length=64"))
    assert found.status == "warn" and "positions 32 to 63" in found.line
    assert "--max_sequence_length=32" in found.advice[0]


def test_an_absurd_learning_rate_fails_overfitting_and_one_that_works_is_named(text_file: Path):
    found = check_overfit(subject_of(text_file, "--learning_rate=1.5"), 60, 60)
    assert found.status == "FAIL"
    assert found.advice[0].startswith(("--learning_rate=0.15 learns it", "--learning_rate=0.015 learns it"))


def test_a_rate_that_is_far_too_low_fails_overfitting_unless_only_time_was_short(text_file: Path):
    subject = subject_of(text_file, "--learning_rate=0.000001")
    hurried = check_overfit(subject, 10_000, 0.01)
    assert hurried.status == "warn" and hurried.advice == ("--max_probe_seconds=0.04 gives it more time",)
    assert hurried.numbers["out_of_time"] and hurried.numbers["steps"] < 1000
    found = check_overfit(subject, 5, 60)
    assert found.status == "FAIL" and "no learning rate from 1e-08 to 1e-05" in found.advice[0]
