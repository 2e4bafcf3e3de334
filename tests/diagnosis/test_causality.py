"""The causality check: a correct mask passes, each broken one fails."""

import pytest
import tensorflow as tf

from tests.diagnosis.probes import probe_of
from tfgpt.diagnosis import causality
from tfgpt.diagnosis.causality import check_causality
from tfgpt.model import decoder

MASK = decoder.AttentionMask.call
ZERO_OUTPUTS = "--zero_initialized_outputs --tie_embeddings=false --head_initializer_range=0.001"


def all_seen(layer, inputs: tf.Tensor) -> tf.Tensor:
    return tf.zeros([1, 1, 1, tf.shape(inputs)[1], tf.shape(inputs)[1]])


def one_later_seen(layer, inputs: tf.Tensor) -> tf.Tensor:
    return tf.roll(MASK(layer, inputs), 1, axis=-1)


def documents_ignored(layer, segment_ids: tf.Tensor) -> tf.Tensor:
    position = tf.range(tf.shape(segment_ids)[1])
    return tf.where(position[:, None] >= position, 0.0, -1e9)[None, None, None]


@pytest.mark.parametrize(
    ("mask", "flags", "problem"),
    [
        # Outputs that start at zero: no logit of the untrained model depends on attention.
        (all_seen, ZERO_OUTPUTS, "later tokens are seen"),
        (one_later_seen, "", "later tokens are seen"),
        (documents_ignored, "--document_masking", "another document is seen"),
        (MASK, "--sliding_window=1", "earlier tokens are not seen"),
    ],
)
def test_a_wrong_mask_fails(text_file, monkeypatch, mask, flags, problem):
    monkeypatch.setattr(decoder.AttentionMask, "call", mask)
    found = check_causality(probe_of(text_file, flags))
    assert found.status == "FAIL" and found.line.endswith(problem)
    assert ("largest_change_in_other_document" in found.numbers) == ("--document_masking" in flags)


def test_a_part_of_a_row_is_compared_when_all_logits_do_not_fit(text_file, monkeypatch):
    monkeypatch.setattr(causality, "LOGIT_BYTES", 4 * 4 * 260 * 16)
    monkeypatch.setattr(causality, "MIN_LENGTH", 8)
    assert check_causality(probe_of(text_file)).status == "ok"
    monkeypatch.setattr(decoder.AttentionMask, "call", all_seen)
    assert check_causality(probe_of(text_file)).status == "FAIL"
