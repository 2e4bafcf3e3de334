"""Llama 3's `ignore_merges` as TensorFlow operations: a pre-token that equals a token is not split by BPE."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tensorflow as tf
import tokenizers

from tfgpt.tokenization.in_graph.text_ops import preceding
from tfgpt.tokenization.tokenizer import Tokenizer

BUCKETS = 2**62


class IgnoreMergesLookup(tf.Module):
    """Finds the pre-tokens that equal one of the given tokens.

    Args:
        tokens: (bytes, id).
    """

    def __init__(self, tokens: Sequence[tuple[bytes, int]]):
        super().__init__()
        with tf.device("CPU:0"):
            self._bytes = tf.constant([bytes([byte]) for byte in range(256)])
            contents = tf.constant([content for content, _ in tokens])
            hashes = tf.strings.to_hash_bucket_fast(contents, BUCKETS)
            order = tf.argsort(hashes)
            self._hashes, self._tokens = tf.gather(hashes, order), tf.gather(contents, order)
            self._ids = tf.gather(tf.constant([identifier for _, identifier in tokens], tf.int32), order)
        if len(set(hashes.numpy())) != len(tokens):
            raise ValueError("two tokens have the same hash")

    def __call__(self, contents: tf.Tensor, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Looks up all pre-tokens.

        Args:
            contents: [T] int32 bytes.
            words: [T] int32, ascending from 0 without gaps: the pre-token of each byte.

        Returns:
            [T] int32: the id at the first byte of a pre-token that is a token, -1 elsewhere; and [T] bool: the bytes of
            such pre-tokens.
        """
        starts = words != preceding(words, 1, filler=-1)
        count = tf.math.count_nonzero(starts, dtype=tf.int32)
        strings = tf.strings.unsorted_segment_join(tf.gather(self._bytes, contents), words, count)  # (W)
        index = tf.searchsorted(self._hashes, tf.strings.to_hash_bucket_fast(strings, BUCKETS))
        index = tf.minimum(index, tf.size(self._hashes) - 1)
        ids = tf.where(tf.gather(self._tokens, index) == strings, tf.gather(self._ids, index), -1)
        ids = tf.gather(ids, words)
        return tf.where(starts, ids, -1), ids >= 0


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
