"""Causality, measured: what a changed token changes, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfgpt.diagnosis.check_results import FAIL, OK, CheckResult
from tfgpt.diagnosis.probe_model import Batch, ProbeModel

LOGIT_BYTES = 256 << 20
"""Logits that are compared at once; of larger ones, evenly spread positions and those around a change."""

NOISE = {"float32": 1e-6, "bfloat16": 1e-3}
"""What counts as no change, as a share of the largest logit. Rows of equal shape are computed alike, so exactly 0 is
what a causal model shows on CPUs; two equal rows of the same batch show what it is elsewhere."""

SHORTEST_ROW = 64
VARIANTS = 5


def check_causality(subject: ProbeModel) -> CheckResult:
    """A changed token changes no earlier logit and some later one; with documents, none of another document.

    Projections that start at zero are filled with random numbers for the while: they would hide what attention sees.
    """
    row, cut = shortened(*chosen_row(subject), max(SHORTEST_ROW, subject.forward_tokens // VARIANTS))
    with FilledZeros(subject):
        changes = CausalityProbe(subject, row, cut)
        return judged(changes)


def chosen_row(subject: ProbeModel) -> tuple[Batch, int | None]:
    """A row [1, T] of the first batch, and where its second document begins when attention is cut between documents.

    A row without a second document is cut in the middle.
    """
    row = {name: array[:1] for name, array in subject.batch.items()}
    if not subject.decoder.packed:
        return row, None
    segments = subject.batch["segment_ids"]
    length = segments.shape[1]
    # The border nearest to the middle of a row.
    rows, places = np.nonzero(segments[:, 1:] != segments[:, :-1])
    if len(rows):
        best = int(np.argmin(np.abs(places + 1 - length // 2)))
        return {name: array[rows[best]][None] for name, array in subject.batch.items()}, int(places[best]) + 1
    cut, place = length // 2, np.arange(length, dtype=np.int32)
    return {
        **row,
        "segment_ids": np.where(place < cut, 1, 2).astype(np.int32)[None],
        "positions": np.where(place < cut, place, place - cut).astype(np.int32)[None],
    }, cut


def shortened(row: Batch, cut: int | None, length: int) -> tuple[Batch, int | None]:
    """At most `length` tokens of a row, those around the cut where there is one."""
    whole = row["token_ids"].shape[1]
    if whole <= length:
        return row, cut
    start = 0 if cut is None else min(max(cut - length // 2, 0), whole - length)
    part = {name: array[:, start : start + length] for name, array in row.items()}
    return part, None if cut is None else cut - start


class FilledZeros:
    """Inside the block, matrices that are all zero hold small random numbers."""

    def __init__(self, subject: ProbeModel):
        matrices = [variable for variable in subject.decoder.trainable_variables if len(variable.shape) > 1]
        self.zeros = [variable for variable in matrices if not tf.reduce_any(variable.value != 0)]

    def __enter__(self) -> None:
        for number, variable in enumerate(self.zeros):
            values = tf.random.stateless_normal(variable.shape, [number, 1], stddev=variable.shape[0] ** -0.5)
            variable.assign(tf.cast(values, variable.dtype))

    def __exit__(self, *_: object) -> None:
        for variable in self.zeros:
            variable.assign(tf.zeros(variable.shape, variable.dtype))


class CausalityProbe:
    """How much each logit of a row moves when a token of it is changed.

    Attributes:
        place: the token that is changed, about in the middle (of the first document, where there are two).
        seen: the positions whose logits were compared, ascending.
        middle, last, first_document: the largest change of a logit at each position in `seen` after changing the token
            at `place`, the last token, and all tokens of the first document (None without documents).
        scale: the largest logit.
        repetition: what changes between two equal rows.
        noise: changes up to this are none.
    """

    def __init__(self, subject: ProbeModel, row: Batch, cut: int | None):
        length = row["token_ids"].shape[1]
        vocabulary_size = subject.config.vocabulary_size
        self.length = length
        self.place = (length if cut is None else cut) // 2
        self.cut = cut
        variants = [self.altered(row, slice(0, 0), vocabulary_size)] * 2
        variants.append(self.altered(row, slice(self.place, self.place + 1), vocabulary_size))
        variants.append(self.altered(row, slice(length - 1, length), vocabulary_size))
        if cut is not None:
            variants.append(self.altered(row, slice(0, cut), vocabulary_size))
        names = ("token_ids", "positions", "segment_ids") if subject.decoder.packed else ("token_ids",)
        batch = {name: np.repeat(row[name], len(variants), axis=0) for name in names}
        batch["token_ids"] = np.concatenate(variants)
        self.seen = self.compared(len(variants), vocabulary_size)
        logits = self.logits(subject, batch)
        base = logits[0]
        difference = np.abs(logits - base).max(axis=-1)  # (variants, positions)
        self.scale = float(np.abs(base).max())
        compute_dtype = "bfloat16" if "bfloat16" in subject.recipe.step.dtype else "float32"
        self.repetition = 4 * float(difference[1].max())
        self.noise = max(NOISE[compute_dtype] * self.scale, self.repetition)
        self.middle, self.last = difference[2], difference[3]
        self.first_document = difference[4] if cut is not None else None
        self.finite = bool(np.isfinite(logits).all())

    def altered(self, row: Batch, place: slice, vocabulary_size: int) -> np.ndarray:
        """The row's ids [1, T] with others at `place`."""
        token_ids = row["token_ids"].copy()
        token_ids[:, place] = (token_ids[:, place] + vocabulary_size // 2) % vocabulary_size
        return token_ids

    def compared(self, variants: int, vocabulary_size: int) -> np.ndarray:
        """Positions whose logits fit into LOGIT_BYTES, those around the changes always among them."""
        room = max(16, LOGIT_BYTES // (4 * variants * vocabulary_size))
        if self.length <= room:
            return np.arange(self.length)
        spread = np.linspace(0, self.length - 1, room - 10).astype(int)
        around = [self.place + offset for offset in (-1, 0, 1)] + [self.length - 2, self.length - 1, 0]
        around += [self.cut + offset for offset in (-1, 0, 1)] if self.cut is not None else []
        return np.unique(np.clip([*spread, *around], 0, self.length - 1))

    def logits(self, subject: ProbeModel, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """[variants, positions in `seen`, V]; the whole decoder where all logits fit, else head after backbone."""
        decoder = subject.decoder
        # As it is trained, except where dropout would change other things in every row.
        training = not subject.config.dropout
        if len(self.seen) == self.length:
            return subject.run(lambda inputs: decoder(inputs, training=training), batch)
        return subject.run(
            lambda inputs: decoder.logits(tf.gather(decoder.backbone(inputs, training=training), self.seen, axis=1)),
            batch,
        )


def judged(changes: CausalityProbe) -> CheckResult:
    """The finding of what was measured."""
    before, after = changes.seen < changes.place, changes.seen > changes.place
    backwards = max(largest(changes.middle[before]), largest(changes.last[changes.seen < changes.length - 1]))
    own = changes.seen >= changes.place
    if changes.cut is not None:
        after &= changes.seen < changes.cut
    forwards = largest(changes.middle[after])
    itself = largest(changes.middle[own])
    numbers = {
        "changed_position": changes.place,
        "largest_change_before": backwards,
        "largest_change_after": forwards,
        "largest_logit": changes.scale,
        "noise": changes.noise,
    }
    line = (
        f"changing token {changes.place} of {changes.length} changes earlier logits by {backwards:.2g}, later ones by "
        f"{forwards:.2g} (largest logit {changes.scale:.2g})"
    )
    if not changes.finite:
        return CheckResult("causality", FAIL, f"{line}; some logits are not finite", (), numbers)
    if backwards > changes.noise:
        advice = (
            "the model sees what it is asked to predict: its loss will be low and its text worthless; look at the "
            "attention mask (tfgpt/model/attention.py: causal_mask, packed_mask)",
        )
        return CheckResult("causality", FAIL, f"{line}: later tokens are seen", advice, numbers)
    if changes.first_document is not None:
        crossing = largest(changes.first_document[changes.seen >= changes.cut])
        numbers["largest_change_in_other_document"] = crossing
        line += f"; changing a whole document changes the next one's logits by {crossing:.2g}"
        if crossing > changes.noise:
            advice = (
                "attention crosses documents in spite of --document_masking: look at packed_mask and the segment ids",
            )
            return CheckResult("causality", FAIL, f"{line}: another document is seen", advice, numbers)
    if after.any() and forwards <= changes.repetition:
        if itself <= changes.repetition:
            advice = ("the logits do not depend on the tokens at all: look at the token embedding and the head",)
        else:
            advice = (
                "a token is predicted from the one before alone: look at attention (--sliding_window=1 does this)",
            )
        return CheckResult("causality", FAIL, f"{line}: earlier tokens are not seen", advice, numbers)
    return CheckResult("causality", OK, line, (), numbers)


def largest(changes: np.ndarray) -> float:
    """The largest change; 0 of none."""
    return float(changes.max()) if changes.size else 0.0
