"""The causality check: a correct mask passes, each broken one fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from tests.diagnosis.probes import probe_of
from tfgpt.diagnosis import causality
from tfgpt.diagnosis.causality import check_causality
from tfgpt.model import decoder


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
    found = check_causality(
        probe_of(text_file, "--zero_initialized_outputs", "--tie_embeddings=false", "--head_initializer_range=0.001")
    )
    assert found.status == "FAIL" and "later tokens are seen" in found.line


def test_a_mask_that_is_off_by_one_fails_causality(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    right = decoder.AttentionMask.call
    monkeypatch.setattr(decoder.AttentionMask, "call", lambda self, inputs: tf.roll(right(self, inputs), 1, axis=-1))
    assert check_causality(probe_of(text_file)).status == "FAIL"


def test_attention_across_documents_fails_causality(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder.AttentionMask, "call", documents_ignored)
    found = check_causality(probe_of(text_file, "--document_masking"))
    assert found.status == "FAIL" and "another document is seen" in found.line


def test_a_model_that_looks_at_nothing_before_fails_causality(text_file: Path):
    found = check_causality(probe_of(text_file, "--sliding_window=1"))
    assert found.status == "FAIL" and "earlier tokens are not seen" in found.line


def test_a_part_of_a_row_is_compared_when_all_logits_do_not_fit(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(causality, "LOGIT_BYTES", 4 * 4 * 260 * 16)
    monkeypatch.setattr(causality, "MIN_LENGTH", 8)
    assert check_causality(probe_of(text_file)).status == "ok"
    monkeypatch.setattr(decoder.AttentionMask, "call", all_seen)
    assert check_causality(probe_of(text_file)).status == "FAIL"
