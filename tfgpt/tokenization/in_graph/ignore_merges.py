"""Llama 3's `ignore_merges`: a pre-token that is a token is that token, even where merging its bytes ends otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tokenizers

from tfgpt.tokenization.tokenizer import Tokenizer

FACTOR = 1_000_003
"""Of the polynomial that tells pre-tokens apart; what it takes for equal is compared byte by byte."""


def unmerged_tokens(tokenizer: Tokenizer) -> list[tuple[bytes, int]]:
    """The tokens (bytes, id) that merging their own bytes does not make, where the file says to ignore that."""
    model = tokenizer.document["model"]
    if not model.get("ignore_merges"):
        return []
    merging = tokenizers.Tokenizer.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "model": {**model, "ignore_merges": False}})
    )
    tokens, contents = sorted(model["vocab"]), tokenizer.token_bytes()
    found = merging.encode_batch_fast(tokens, add_special_tokens=False)
    identifiers = [model["vocab"][token] for token in tokens]
    return [(contents[own], own) for own, encoded in zip(identifiers, found) if contents[own] and encoded.ids != [own]]


class IgnoreMergesLookup(tf.Module):
    """Finds the pre-tokens that are one of some tokens.

    Args:
        tokens: (bytes, id); none is empty.
    """

    def __init__(self, tokens: Sequence[tuple[bytes, int]]):
        super().__init__()
        width = max(len(content) for content, _ in tokens)
        rows = np.array([list(content.ljust(width, b"\0")) for content, _ in tokens], np.int32)
        lengths = np.array([len(content) for content, _ in tokens], np.int32)
        with np.errstate(over="ignore"):
            powers = np.cumprod(np.full(width, FACTOR, np.int64))
            inside = np.arange(width) < lengths[:, None]
            sums = np.where(inside, (rows.astype(np.int64) + 1) * powers, 0).sum(1)
        order = np.argsort(sums, kind="stable")
        if len(np.unique(sums)) != len(sums):
            raise ValueError("two tokens have one sum; take another factor")
        with tf.device("CPU:0"):
            self._powers, self._sums = tf.constant(powers), tf.constant(sums[order])
            self._rows, self._lengths = tf.constant(rows[order]), tf.constant(lengths[order])
            self._ids = tf.constant(np.array([identifier for _, identifier in tokens], np.int32)[order])

    def __call__(self, contents: tf.Tensor, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Looks all pre-tokens up.

        Args:
            contents: [T] int32 bytes.
            words: [T] int32, ascending from 0 without gaps: the pre-token of each byte.

        Returns:
            [T] int32: the id at the first byte of a pre-token that was found, -1 elsewhere; and [T] bool: the bytes of
            such pre-tokens.
        """
        index, width = tf.range(tf.size(words)), tf.size(self._powers)
        begins = tf.math.segment_min(index, words)  # (W)
        lengths = tf.math.segment_sum(tf.ones_like(words), words)
        place = index - tf.gather(begins, words)
        powers = tf.gather(self._powers, tf.minimum(place, width - 1))
        sums = tf.math.segment_sum((tf.cast(contents, tf.int64) + 1) * powers, words)
        candidate = tf.minimum(tf.searchsorted(self._sums, sums), tf.size(self._sums) - 1)
        likely = (tf.gather(self._sums, candidate) == sums) & (tf.gather(self._lengths, candidate) == lengths)
        likely_words = tf.where(likely)[:, 0]
        candidate, begin = tf.gather(candidate, likely_words), tf.gather(begins, likely_words)
        places = tf.minimum(begin[:, None] + tf.range(width), tf.maximum(tf.size(contents) - 1, 0))
        inside = tf.sequence_mask(tf.gather(self._lengths, candidate), width)
        equal = tf.reduce_all((tf.gather(contents, places) == tf.gather(self._rows, candidate)) | ~inside, 1)
        likely_words, candidate = tf.boolean_mask(likely_words, equal), tf.boolean_mask(candidate, equal)
        identifiers = tf.tensor_scatter_nd_update(
            tf.fill([tf.size(begins)], -1), likely_words[:, None], tf.gather(self._ids, candidate)
        )
        of_word = tf.gather(identifiers, words)
        return tf.where(place == 0, of_word, -1), of_word >= 0
