"""Unicode normalization form C (Unicode Standard Annex 15) as core TensorFlow operations, for Qwen's tokenizers.

Characters are decomposed, the marks after each are ordered, and pairs are composed again. The tables come from
`tokenizers`, because Python has another version of Unicode.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import numpy as np
import tensorflow as tf
import tokenizers

from tfgpt.tokenization.in_graph.text_ops import RAW, position_in_run, preceding

WIDE = 1 << 21
LATER = np.int32(2**31 - 1)


class NFC(tf.Module):
    """Unicode's canonical composition (NFC) of texts, as TensorFlow operations."""

    def __init__(self) -> None:
        super().__init__()
        tables = nfc_tables()
        with tf.device("CPU:0"):
            self._page_of, self._pages = tf.constant(tables["page_of"]), tf.constant(tables["pages"])
            self._parts = tf.RaggedTensor.from_row_lengths(tables["parts"], tables["lengths"])
            self._pairs, self._composed = tf.constant(tables["pairs"]), tf.constant(tables["composed"])

    def __call__(self, code_points: tf.Tensor, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Normalizes each piece separately.

        Args:
            code_points: [C] int32; `RAW` + byte for a byte outside any well-formed sequence.
            pieces: [C] int32, ascending: the piece of each character.

        Returns:
            [C'] int32 code points and [C'] int32 pieces.
        """
        _, _, plain = self._properties(code_points)
        unchanged = tf.reduce_all(plain)
        return tf.cond(unchanged, lambda: (code_points, pieces), lambda: self._normalized(code_points, pieces))

    def _properties(self, code_points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns [C] combining class, [C] row of the decomposition, [C] whether nothing changes."""
        packed = tf.gather(self._pages, tf.gather(self._page_of, code_points // 256) * 256 + code_points % 256)
        return packed % 256, packed // 512, packed == 0

    def _normalized(self, code_points: tf.Tensor, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        _, rows, _ = self._properties(code_points)
        decomposed = tf.gather(self._parts, rows)
        source = decomposed.value_rowids()
        code_points = tf.where(tf.gather(rows, source) == 0, tf.gather(code_points, source), decomposed.flat_values)
        pieces = tf.gather(pieces, source)
        classes, _, _ = self._properties(code_points)
        groups = tf.cumsum(tf.cast(_starts(classes, pieces), tf.int64))
        order = tf.argsort(groups * 256 + tf.cast(classes, tf.int64), stable=True)
        code_points, classes = tf.gather(code_points, order), tf.gather(classes, order)
        code_points, _, pieces, _ = tf.while_loop(
            lambda code_points, classes, pieces, changed: changed,
            self._round,
            [code_points, classes, pieces, tf.constant(True)],
            shape_invariants=[*[tf.TensorShape([None])] * 3, tf.TensorShape([])],
            parallel_iterations=1,
        )
        return code_points, pieces

    def _round(self, code_points: tf.Tensor, classes: tf.Tensor, pieces: tf.Tensor, _: tf.Tensor) -> Any:
        """Composes every character with one of its marks or with the next character."""
        index = tf.range(tf.size(code_points))
        starts = _starts(classes, pieces)
        groups = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        base = tf.gather(tf.math.segment_min(index, groups), groups)
        # A mark is blocked by a mark of its class before it. Marks of lower class come first.
        blocked = (index - 1 > base) & (preceding(classes, 1) == classes)
        with_base = self._pair(tf.gather(code_points, base), code_points)
        able = ~starts & (tf.gather(classes, base) == 0) & ~blocked & (with_base >= 0)
        # Two neighbors (Hangul, some Indic vowels); of three, the first two. The second is never the first of another
        # pair (`nfc_tables` checks this), so it does not wait for its own marks.
        neighbor = self._pair(preceding(code_points, 1), code_points)
        real = starts & (classes == 0)
        joins = real & preceding(real, 1) & (pieces == preceding(pieces, 1, filler=-1)) & (neighbor >= 0)
        joins &= position_in_run(joins) % 2 == 0
        chosen = tf.math.segment_min(tf.where(able, index, LATER), groups)
        chosen = tf.boolean_mask(chosen, chosen != LATER)
        joined = tf.cast(tf.where(joins)[:, 0], tf.int32)
        taken = tf.concat([chosen, joined], 0)
        takers = tf.concat([tf.gather(base, chosen), joined - 1], 0)
        results = tf.concat([tf.gather(with_base, chosen), tf.gather(neighbor, joined)], 0)
        code_points = tf.tensor_scatter_nd_update(code_points, takers[:, None], results)
        kept = tf.fill([tf.size(index)], True)
        kept = tf.tensor_scatter_nd_update(kept, taken[:, None], tf.zeros_like(taken, tf.bool))
        code_points, classes, pieces = (tf.boolean_mask(value, kept) for value in (code_points, classes, pieces))
        return code_points, classes, pieces, tf.size(taken) > 0

    def _pair(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """Returns [C] int32: the composition of two code points, or -1."""
        keys = tf.cast(left, tf.int64) * WIDE + tf.cast(right, tf.int64)
        index = tf.minimum(tf.searchsorted(self._pairs, keys), tf.size(self._pairs) - 1)
        return tf.where(tf.gather(self._pairs, index) == keys, tf.gather(self._composed, index), -1)


def _starts(classes: tf.Tensor, pieces: tf.Tensor) -> tf.Tensor:
    """Returns [C] bool: the characters that can be followed by marks, and the first of each piece."""
    return (classes == 0) | (pieces != preceding(pieces, 1, filler=-1))


@functools.cache
def nfc_tables() -> dict[str, np.ndarray]:
    """Returns the tables, for every character that is a mark or has a decomposition in Python's newer Unicode.

    Returns:
        page_of, pages: by code point, the combining class + 256 if it can be the second of a pair + 512 x its row in
        parts. parts, lengths: decompositions; row 0 is none. pairs, composed: sorted keys (left x WIDE + right), and
        their compositions.
    """
    decompose = tokenizers.normalizers.NFD().normalize_str
    compose = tokenizers.normalizers.NFC().normalize_str
    characters = [
        character
        for character in map(chr, [*range(0xD800), *range(0xE000, RAW)])
        if unicodedata.category(character)[0] == "M" or unicodedata.normalize("NFD", character) != character
    ]
    decomposed = zip(characters, decompose("\n".join(characters)).split("\n"))
    changed = {character: parts for character, parts in decomposed if parts != character}
    pairs: dict[tuple[str, str], str] = {}
    for character, parts in changed.items():
        left = compose(parts[:-1])
        if len(parts) > 1 and len(left) == 1 and compose(character) == character == compose(left + parts[-1]):
            pairs[left, parts[-1]] = character
    classes = combining_classes(characters)
    neighbors = {right for _, right in pairs if right not in classes}
    if neighbors & {left for left, _ in pairs}:
        raise ValueError("a character is both the second and the first of a pair, so rounds are not exact")
    packed = np.zeros(RAW + 256, np.int32)
    for row, character in enumerate(changed, 1):
        packed[ord(character)] += 512 * row
    for character, number in classes.items():
        packed[ord(character)] += number
    for character in neighbors:
        packed[ord(character)] += 256
    pages, page_of = np.unique(packed.reshape(-1, 256), axis=0, return_inverse=True)
    keys = np.array([ord(left) * WIDE + ord(right) for left, right in pairs], np.int64)
    order = np.argsort(keys)
    composed = np.array([ord(character) for character in pairs.values()], np.int32)[order]
    return {
        "page_of": page_of.reshape(-1).astype(np.int32), "pages": pages.reshape(-1),
        "parts": np.array([0, *map(ord, "".join(changed.values()))], np.int32),
        "lengths": np.array([1, *map(len, changed.values())]), "pairs": keys[order], "composed": composed,
    }  # fmt: skip


def combining_classes(characters: list[str]) -> dict[str, int]:
    classes = {character: unicodedata.combining(character) for character in characters}
    low, high = "\u0334", "\u0345"  # classes 1 and 240
    # `tokenizers` reorders marks if it knows their classes.
    pairs = {mark: (low, mark) if number > 1 else (mark, high) for mark, number in classes.items() if number}
    swapped = "\n".join(f"a{second}{first}" for first, second in pairs.values())
    found = tokenizers.normalizers.NFD().normalize_str(swapped).split("\n")
    return {mark: classes[mark] for (mark, pair), text in zip(pairs.items(), found) if text == f"a{''.join(pair)}"}
