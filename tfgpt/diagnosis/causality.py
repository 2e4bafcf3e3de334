"""Causality check: changes a token and compares the logits."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfgpt.diagnosis.check_results import FAIL, OK, CheckResult
from tfgpt.diagnosis.probe_model import ProbeModel

# Bytes of logits that are compared; longer rows are truncated.
LOGIT_BYTES = 256 << 20
# Change that counts as none, as a share of the largest logit; two equal rows show how much noise the device has.
NOISE = {"float32": 1e-6, "mixed_bfloat16": 1e-3}
MIN_LENGTH, VARIANTS = 64, 4


def check_causality(probe: ProbeModel) -> CheckResult:
    """Checks that a changed token changes later logits and no earlier ones.

    With document masking, the row is two documents, and changing the first must not change the logits of the second.
    """
    logits, changed, end = variant_logits(probe)
    length = logits.shape[1]
    changes = np.abs(logits - logits[0]).max(axis=-1)  # (variants, length)
    largest = float(np.abs(logits[0]).max())
    repetition = 4 * float(changes[1].max())
    noise = max(NOISE[probe.config.step.dtype] * largest, repetition)
    before = float(changes[2, :changed].max(initial=0.0))
    after = float(changes[2, changed + 1 : end].max(initial=0.0))
    crossing = float(changes[3, end:].max(initial=0.0))
    numbers = {"changed_position": changed, "largest_change_before": before, "largest_change_after": after}
    numbers |= {"largest_logit": largest, "noise": noise}
    line = f"changing token {changed} of {length} changes earlier logits by {before:.2g}, later ones by {after:.2g} "
    line += f"(largest logit {largest:.2g})"
    if probe.decoder.packed:
        numbers["largest_change_in_other_document"] = crossing
        line += f"; changing a whole document changes the next one's logits by {crossing:.2g}"
    if not np.isfinite(logits).all():
        problem, advice = "some logits are not finite", "--dtype=float32, or a smaller --initializer_range"
    elif before > noise:
        problem = "later tokens are seen"
        advice = "the model sees the tokens it should predict: its loss will be low and its text worthless; look at "
        advice += "causal_mask and packed_mask in tfgpt/model/attention_mask.py"
    elif crossing > noise:
        problem = "another document is seen"
        advice = "attention crosses documents in spite of --document_masking: look at packed_mask and the segment ids"
    elif changed + 1 < end and after <= repetition:
        problem = "earlier tokens are not seen"
        advice = "the logits depend only on the previous token: look at attention (--sliding_window=1 does this)"
        if changes[2, changed] <= repetition:
            advice = "the logits do not depend on the tokens at all: look at the token embedding and the head"
    else:
        return CheckResult("causality", OK, line, numbers=numbers)
    return CheckResult("causality", FAIL, f"{line}: {problem}", (advice,), numbers)


def variant_logits(probe: ProbeModel) -> tuple[np.ndarray, int, int]:
    """Computes the logits of a row twice, with one token changed, and with the first document changed.

    Returns the logits [VARIANTS, T, V], the position of the changed token and the end of the first document.
    """
    vocabulary_size, packed = probe.decoder_config.vocabulary_size, probe.decoder.packed
    longest = min(probe.forward_tokens // VARIANTS, LOGIT_BYTES // (4 * VARIANTS * vocabulary_size))
    token_ids = probe.batch["token_ids"][:1, : max(MIN_LENGTH, longest)]
    position = np.arange(token_ids.shape[1], dtype=np.int32)[None]
    end = position.size // 2 if packed else position.size
    changed = end // 2
    other_ids = (token_ids + vocabulary_size // 2) % vocabulary_size
    first = position < end
    rows = [token_ids] * 2 + [np.where(where, other_ids, token_ids) for where in (position == changed, first)]
    inputs = {
        "token_ids": np.concatenate(rows),
        "positions": np.repeat(np.where(first, position, position - end), VARIANTS, axis=0),
        "segment_ids": np.repeat(np.where(first, np.int32(1), np.int32(2)), VARIANTS, axis=0),
    }
    # As in training, unless dropout would change every row.
    training = not probe.decoder_config.dropout
    logits_of = probe.traced(lambda batch: probe.decoder(batch, training=training))
    # Matrices that are all zero would hide the effect of attention, so they are filled with random numbers meanwhile.
    matrices = [variable for variable in probe.decoder.trainable_variables if len(variable.shape) > 1]
    zeros = [variable for variable in matrices if not tf.reduce_any(variable.value != 0)]
    for number, variable in enumerate(zeros):
        values = tf.random.stateless_normal(variable.shape, [number, 1], stddev=variable.shape[0] ** -0.5)
        variable.assign(tf.cast(values, variable.dtype))
    try:
        return logits_of(probe.decoder_inputs(inputs)), changed, end
    finally:
        for variable in zeros:
            variable.assign(tf.zeros(variable.shape, variable.dtype))
