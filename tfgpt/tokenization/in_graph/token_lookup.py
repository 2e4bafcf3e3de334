"""Look-ups of tokens that are found as a whole: added tokens (Qwen's <tool_call>), and Llama 3's `ignore_merges`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tokenizers

from tfgpt.tokenization.in_graph.text_ops import preceding
from tfgpt.tokenization.tokenizer import Tokenizer

FACTOR = 1_000_003
"""Base of the polynomial hash of pre-tokens; equal hashes are compared byte by byte."""


class AddedTokensLookup(tf.Module):
    """Finds tokens inside texts, and the longest of those that begin at one position.

    Args:
        tokens: (bytes, id). They must not overlap (`tokenizer_json.added_tokens_limitation`).
    """

    def __init__(self, tokens: Sequence[tuple[bytes, int]]):
        super().__init__()
        with tf.device("CPU:0"):
            self._rows = tf.constant(padded_rows(tokens))
            self._lengths = tf.constant([len(content) for content, _ in tokens], tf.int32)
            self._ids = tf.constant([identifier for _, identifier in tokens], tf.int32)
            self._firsts = tf.constant(sorted({content[0] for content, _ in tokens}), tf.int32)

    def __call__(self, contents: tf.Tensor, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Splits texts at the tokens in them.

        Args:
            contents: [T] int32 bytes.
            texts: [T] int32, ascending: the text of each byte.

        Returns:
            [T] int32 pieces, ascending: the tokens and the parts between them; [T] bool, whether a byte is outside all
            tokens; [n] int32 pieces of the tokens, and [n] int32 their ids.
        """
        width, count = self._rows.shape[1], tf.size(contents)
        likely = tf.cast(tf.where(tf.reduce_any(contents[:, None] == self._firsts, 1))[:, 0], tf.int32)
        positions = likely[:, None] + tf.range(width)  # (n, width)
        clipped = tf.minimum(positions, tf.maximum(count - 1, 0))
        same_text = (positions < count) & (tf.gather(texts, clipped) == tf.gather(texts, likely)[:, None])
        found = tf.where(same_text, tf.gather(contents, clipped), -1)
        padding = ~tf.sequence_mask(self._lengths, width)  # (tokens, width)
        equal = tf.reduce_all((found[:, None] == self._rows) | padding, 2)  # (n, tokens)
        lengths = tf.where(equal, self._lengths, 0)
        which, longest = tf.argmax(lengths, 1), tf.reduce_max(lengths, 1)
        begins = tf.boolean_mask(likely, longest > 0)
        ends = begins + tf.boolean_mask(longest, longest > 0)
        step = tf.tensor_scatter_nd_add(tf.zeros([count + 1], tf.int32), begins[:, None], tf.ones_like(begins))
        step = tf.tensor_scatter_nd_add(step, ends[:, None], -tf.ones_like(ends))
        borders = tf.tensor_scatter_nd_update(
            tf.zeros([count + 1], tf.bool), tf.concat([begins, ends], 0)[:, None], tf.fill([2 * tf.size(ends)], True)
        )
        borders = borders[:-1] | (texts != preceding(texts, 1, filler=-1))
        pieces = tf.cumsum(tf.cast(borders, tf.int32)) - 1
        identifiers = tf.gather(self._ids, tf.boolean_mask(which, longest > 0))
        return pieces, tf.cumsum(step)[:-1] == 0, tf.gather(pieces, begins), identifiers


class IgnoreMergesLookup(tf.Module):
    """Finds the pre-tokens that equal one of the given tokens.

    Args:
        tokens: (bytes, id); none is empty.
    """

    def __init__(self, tokens: Sequence[tuple[bytes, int]]):
        super().__init__()
        rows = padded_rows(tokens)
        lengths = np.array([len(content) for content, _ in tokens], np.int32)
        with np.errstate(over="ignore"):
            powers = np.cumprod(np.full(rows.shape[1], FACTOR, np.int64))
            inside = np.arange(rows.shape[1]) < lengths[:, None]
            hashes = np.where(inside, (rows.astype(np.int64) + 1) * powers, 0).sum(1)
        order = np.argsort(hashes, kind="stable")
        if len(np.unique(hashes)) != len(hashes):
            raise ValueError("two tokens have the same hash; choose another FACTOR")
        with tf.device("CPU:0"):
            self._powers, self._hashes = tf.constant(powers), tf.constant(hashes[order])
            self._rows, self._lengths = tf.constant(rows[order]), tf.constant(lengths[order])
            self._ids = tf.constant(np.array([identifier for _, identifier in tokens], np.int32)[order])

    def __call__(self, contents: tf.Tensor, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Looks up all pre-tokens.

        Args:
            contents: [T] int32 bytes.
            words: [T] int32, ascending from 0 without gaps: the pre-token of each byte.

        Returns:
            [T] int32: the id at the first byte of a pre-token that is a token, -1 elsewhere; and [T] bool: the bytes of
            such pre-tokens.
        """
        index, width = tf.range(tf.size(words)), tf.size(self._powers)
        begins = tf.math.segment_min(index, words)  # (W)
        lengths = tf.math.segment_sum(tf.ones_like(words), words)
        position = index - tf.gather(begins, words)
        powers = tf.gather(self._powers, tf.minimum(position, width - 1))
        hashes = tf.math.segment_sum((tf.cast(contents, tf.int64) + 1) * powers, words)
        candidate = tf.minimum(tf.searchsorted(self._hashes, hashes), tf.size(self._hashes) - 1)
        likely = (tf.gather(self._hashes, candidate) == hashes) & (tf.gather(self._lengths, candidate) == lengths)
        likely_words = tf.where(likely)[:, 0]
        candidate, begin = tf.gather(candidate, likely_words), tf.gather(begins, likely_words)
        positions = tf.minimum(begin[:, None] + tf.range(width), tf.maximum(tf.size(contents) - 1, 0))
        inside = tf.sequence_mask(tf.gather(self._lengths, candidate), width)
        equal = tf.reduce_all((tf.gather(contents, positions) == tf.gather(self._rows, candidate)) | ~inside, 1)
        likely_words, candidate = tf.boolean_mask(likely_words, equal), tf.boolean_mask(candidate, equal)
        identifiers = tf.tensor_scatter_nd_update(
            tf.fill([tf.size(begins)], -1), likely_words[:, None], tf.gather(self._ids, candidate)
        )
        of_word = tf.gather(identifiers, words)
        return tf.where(position == 0, of_word, -1), of_word >= 0


def unmerged_tokens(tokenizer: Tokenizer) -> list[tuple[bytes, int]]:
    """Returns (bytes, id) of the tokens that BPE of their own bytes does not make, if the file sets `ignore_merges`."""
    model = tokenizer.document["model"]
    if not model.get("ignore_merges"):
        return []
    merging = tokenizers.Tokenizer.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "model": {**model, "ignore_merges": False}})
    )
    tokens, contents = sorted(model["vocab"]), tokenizer.token_bytes()
    encodings = merging.encode_batch_fast(tokens, add_special_tokens=False)
    ids = [model["vocab"][token] for token in tokens]
    return [(contents[own], own) for own, encoded in zip(ids, encodings) if contents[own] and encoded.ids != [own]]


def padded_rows(tokens: Sequence[tuple[bytes, int]]) -> np.ndarray:
    """Returns [tokens, longest] int32 bytes, padded with zeros."""
    width = max(len(content) for content, _ in tokens)
    return np.array([list(content.ljust(width, b"\0")) for content, _ in tokens], np.int32)
