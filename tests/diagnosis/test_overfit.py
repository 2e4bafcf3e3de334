"""The overfitting check, and all checks of sound models."""

import math

import numpy as np
import pytest

from tests.diagnosis.probes import GPT2, probe_of
from tfgpt.diagnosis.causality import check_causality
from tfgpt.diagnosis.initialization import check_gradients, check_initial_loss
from tfgpt.diagnosis.overfit import check_overfit


@pytest.mark.parametrize(
    "flags",
    [GPT2, "--document_masking --dtype=mixed_bfloat16 --sliding_window=8 --dropout=0.1 --rematerialize"],
    ids=["gpt2", "documents"],
)
def test_a_sound_model_passes_every_check(text_file, flags):
    probe = probe_of(text_file, flags)
    before = [np.array(variable.numpy()) for variable in probe.decoder.trainable_variables]
    found = [check_initial_loss(probe), check_causality(probe)]
    after = [variable.numpy() for variable in probe.decoder.trainable_variables]
    # These two only look.
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    found += [check_gradients(probe), check_overfit(probe, 120, 60)]
    assert [finding.line for finding in found if finding.status != "ok"] == []


def test_zero_initialized_outputs_begin_at_ln_of_the_vocabulary_and_only_delay_gradients(text_file):
    zero = (
        "--zero_initialized_outputs --tie_embeddings=false --embedding_initializer_range=1 --head_initializer_range=0"
    )
    flags = "--mlp=squared_relu --optimizer=muon --learning_rate=0.02 --ema_decay=0.9"
    probe = probe_of(text_file, zero, flags)
    found = [check_initial_loss(probe), check_causality(probe), check_gradients(probe)]
    found.append(check_overfit(probe, 120, 60))
    assert [finding.line for finding in found if finding.status != "ok"] == []
    assert found[0].numbers["loss"] == pytest.approx(math.log(260), abs=1e-5)
    # First only the head has a gradient, then what writes to the residual stream, then everything.
    assert found[2].numbers["updates"] == 2


def test_an_absurd_learning_rate_fails_overfitting_and_one_that_works_is_named(text_file):
    found = check_overfit(probe_of(text_file, "--learning_rate=1.5"), 60, 60)
    assert found.status == "FAIL"
    assert found.advice[0].startswith(("--learning_rate=0.15 learns it", "--learning_rate=0.015 learns it"))


def test_a_rate_that_is_far_too_low_fails_overfitting_unless_only_time_was_short(text_file):
    probe = probe_of(text_file, "--learning_rate=0.000001")
    hurried = check_overfit(probe, 10_000, 0.01)
    assert hurried.status == "warn" and hurried.advice == ("--max_probe_seconds=0.04 gives it more time",)
    assert hurried.numbers["out_of_time"] and hurried.numbers["steps"] < 1000
    found = check_overfit(probe, 5, 60)
    [advice] = found.advice
    assert found.status == "FAIL" and "no learning rate from 1e-08 to 1e-05" in advice
