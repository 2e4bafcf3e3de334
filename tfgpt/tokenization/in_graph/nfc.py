"""Unicode's normalization form C (Unicode Standard Annex 15) as core TensorFlow operations; Qwen's tokenizers want it.

Decompose, order the marks behind each character, and compose again. The tables are asked of `tokenizers` itself, whose
version of Unicode is another than Python's.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import numpy as np
import tensorflow as tf
import tokenizers

from tfgpt.tokenization.in_graph.vector_ops import position_in_run, preceding

LONGEST = 4
"""Code points that one is decomposed into at most."""

RAW = 0x110000
"""Added to a byte outside any well-formed sequence, which is left as it is."""

WIDE = 1 << 21
LATER = np.int32(2**31 - 1)


class NFC(tf.Module):
    """Normalizes characters."""

    def __init__(self) -> None:
        super().__init__()
        tables = nfc_tables()
        with tf.device("CPU:0"):
            self._page_of, self._pages = tf.constant(tables["page_of"]), tf.constant(tables["pages"])
            self._parts, self._lengths = tf.constant(tables["parts"]), tf.constant(tables["lengths"])
            self._pairs, self._composed = tf.constant(tables["pairs"]), tf.constant(tables["composed"])

    def __call__(self, code_points: tf.Tensor, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Normalizes.

        Args:
            code_points: [C] int32; `RAW` + byte for what is no character.
            pieces: [C] int32, ascending; characters of different pieces have nothing to do with each other.

        Returns:
            [C'] int32 code points and [C'] int32 their pieces.
        """
        _, _, plain = self._properties(code_points)
        return tf.cond(
            tf.reduce_all(plain), lambda: (code_points, pieces), lambda: self._normalized(code_points, pieces)
        )

    def _properties(self, code_points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[C] combining class (an ordinal), [C] row among the decompositions (0: none), [C] whether nothing happens."""
        packed = tf.gather(self._pages, tf.gather(self._page_of, code_points // 256) * 256 + code_points % 256)
        return packed % 256, packed // 512, packed == 0

    def _normalized(self, code_points: tf.Tensor, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        _, rows, _ = self._properties(code_points)
        lengths = tf.gather(self._lengths, rows)
        source = tf.repeat(tf.range(tf.size(rows)), lengths)
        place = tf.range(tf.size(source)) - tf.gather(tf.cumsum(lengths, exclusive=True), source)
        row = tf.gather(rows, source)
        part = tf.gather_nd(self._parts, tf.stack([row, place], 1))
        code_points = tf.where(row == 0, tf.gather(code_points, source), part)
        pieces = tf.gather(pieces, source)
        classes, _, _ = self._properties(code_points)
        groups = tf.cumsum(tf.cast(begins(classes, pieces), tf.int64))
        order = tf.argsort(groups * 256 + tf.cast(classes, tf.int64), stable=True)
        code_points, classes = tf.gather(code_points, order), tf.gather(classes, order)
        unknown = tf.TensorShape([None])
        code_points, _, pieces, _ = tf.while_loop(
            lambda code_points, classes, pieces, changed: changed,
            self._round,
            [code_points, classes, pieces, tf.constant(True)],
            shape_invariants=[unknown, unknown, unknown, tf.TensorShape([])],
            parallel_iterations=1,
        )
        return code_points, pieces

    def _round(self, code_points: tf.Tensor, classes: tf.Tensor, pieces: tf.Tensor, _: tf.Tensor) -> Any:
        """Every character takes one mark behind it, or the character next to it; until none takes anything."""
        index = tf.range(tf.size(code_points))
        starts = begins(classes, pieces)
        groups = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        base = tf.gather(tf.math.segment_min(index, groups), groups)
        # A mark is blocked by one of its class before it; the order has brought those of lower class in front of it.
        blocked = (index - 1 > base) & (preceding(classes, 1) == classes)
        with_base = self._pair(tf.gather(code_points, base), code_points)
        able = ~starts & (tf.gather(classes, base) == 0) & ~blocked & (with_base >= 0)
        # Two neighbours (Hangul, some Indic vowels); of three, the first two. None of those that are taken so is ever
        # the first of a pair (`nfc_tables` makes sure), so its own marks need not wait.
        neighbour = self._pair(preceding(code_points, 1), code_points)
        real = starts & (classes == 0)
        joins = real & preceding(real, 1) & (pieces == preceding(pieces, 1, filler=-1)) & (neighbour >= 0)
        joins &= position_in_run(joins) % 2 == 0
        chosen = tf.math.segment_min(tf.where(able, index, LATER), groups)
        chosen = tf.boolean_mask(chosen, chosen != LATER)
        joined = tf.cast(tf.where(joins)[:, 0], tf.int32)
        taken = tf.concat([chosen, joined], 0)
        takers = tf.concat([tf.gather(base, chosen), joined - 1], 0)
        results = tf.concat([tf.gather(with_base, chosen), tf.gather(neighbour, joined)], 0)
        code_points = tf.tensor_scatter_nd_update(code_points, takers[:, None], results)
        kept = tf.fill([tf.size(index)], True)
        kept = tf.tensor_scatter_nd_update(kept, taken[:, None], tf.zeros_like(taken, tf.bool))
        code_points, classes, pieces = (tf.boolean_mask(value, kept) for value in (code_points, classes, pieces))
        return code_points, classes, pieces, tf.size(taken) > 0

    def _pair(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """[C] int32: what two code points are composed to, -1 for nothing."""
        keys = tf.cast(left, tf.int64) * WIDE + tf.cast(right, tf.int64)
        place = tf.minimum(tf.searchsorted(self._pairs, keys), tf.size(self._pairs) - 1)
        return tf.where(tf.gather(self._pairs, place) == keys, tf.gather(self._composed, place), -1)


def begins(classes: tf.Tensor, pieces: tf.Tensor) -> tf.Tensor:
    """[C] bool: the characters that marks may stand behind, and the first of each piece."""
    return (classes == 0) | (pieces != preceding(pieces, 1, filler=-1))


def utf8_bytes(code_points: tf.Tensor, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """[T] int32 bytes of characters (`RAW` + byte is that byte) and [T] int32 their pieces."""
    raw = code_points >= RAW
    one = raw | (code_points < 0x80)
    two, three = code_points < 0x800, code_points < 0x10000
    low = [0x80 | (code_points // 64**power) % 64 for power in range(4)]
    first = tf.where(one, code_points - tf.where(raw, RAW, 0), tf.where(two, 0xC0 | code_points // 64, 0))
    first = tf.where(one | two, first, tf.where(three, 0xE0 | code_points // 4096, 0xF0 | code_points // 64**3))
    second = tf.where(two, low[0], tf.where(three, low[1], low[2]))
    third = tf.where(three, low[0], low[1])
    lengths = tf.where(one, 1, tf.where(two, 2, tf.where(three, 3, 4)))
    contents = tf.boolean_mask(tf.stack([first, second, third, low[0]], 1), tf.sequence_mask(lengths, 4))
    return contents, tf.repeat(pieces, lengths)


@functools.cache
def nfc_tables() -> dict[str, np.ndarray]:
    """The tables, from what `tokenizers` makes of every character that Python's Unicode, a newer one, calls a mark or
    decomposes. (That nothing happens to others is tested on every code point; asking for all takes 11 seconds.)

    Returns:
        page_of, pages: by code point, the combining class's ordinal + 256 where something may happen to it all the same
        + 512 x its row in parts. parts, lengths: decompositions; row 0 is none. pairs, composed: sorted keys (left x
        WIDE + right), and what they are composed to.
    """
    decompose = tokenizers.normalizers.NFD().normalize_str
    compose = tokenizers.normalizers.NFC().normalize_str
    characters = [
        character
        for character in map(chr, [*range(0xD800), *range(0xE000, RAW)])
        if unicodedata.category(character)[0] == "M"
        or unicodedata.decomposition(character)
        or "가" <= character <= "힣"
    ]
    decomposed = zip(characters, decompose("\n".join(characters)).split("\n"))
    changed = {character: parts for character, parts in decomposed if parts != character}
    pairs: dict[tuple[str, str], str] = {}
    for character, parts in changed.items():
        left = compose(parts[:-1])
        if len(parts) > 1 and len(left) == 1 and compose(character) == character == compose(left + parts[-1]):
            pairs[left, parts[-1]] = character
    classes = combining_classes(characters)
    neighbours = {right for _, right in pairs if right not in classes}
    if neighbours & {left for left, _ in pairs}:
        raise ValueError("a character is taken by the one before it and takes one itself: rounds would not be exact")
    packed = np.zeros(RAW + 256, np.int32)
    table, lengths = np.zeros((len(changed) + 1, LONGEST), np.int32), np.ones(len(changed) + 1, np.int32)
    for row, (character, found) in enumerate(changed.items(), 1):
        table[row, : len(found)], lengths[row] = [ord(part) for part in found], len(found)
        packed[ord(character)] += 512 * row
    for character, number in classes.items():
        packed[ord(character)] += number
    for character in neighbours:
        packed[ord(character)] += 256
    pages, page_of = np.unique(packed.reshape(-1, 256), axis=0, return_inverse=True)
    keys = np.array([ord(left) * WIDE + ord(right) for left, right in pairs], np.int64)
    order = np.argsort(keys)
    composed = np.array([ord(character) for character in pairs.values()], np.int32)[order]
    return {
        "page_of": page_of.reshape(-1).astype(np.int32), "pages": pages.reshape(-1), "parts": table,
        "lengths": lengths, "pairs": keys[order], "composed": composed,
    }  # fmt: skip


def combining_classes(characters: list[str]) -> dict[str, int]:
    """The ordinal, from 1 on, of the combining class of each character that has one; found by how they are ordered."""
    decompose = tokenizers.normalizers.NFD().normalize_str
    low, high = "\u0334", "\u0345"  # of the lowest class and of the highest

    def behind(candidates: list[str], left: str) -> set[str]:
        """Those that come in front of `left` where they stood behind it: they are of lower class."""
        found = decompose("\n".join("a" + left + candidate for candidate in candidates)).split("\n")
        return {candidate for candidate, text in zip(candidates, found) if text == "a" + candidate + left}

    swapped = decompose("\n".join("a" + candidate + low for candidate in characters)).split("\n")
    marks = {candidate for candidate, text in zip(characters, swapped) if text == "a" + low + candidate}
    marks |= behind(characters, high)
    marks |= {high} | ({low} & set(characters))
    ordered = sorted(marks)
    below = {mark: behind(ordered, mark) for mark in ordered}
    counts = sorted({len(lower) for lower in below.values()})
    return {mark: counts.index(len(lower)) + 1 for mark, lower in below.items()}
