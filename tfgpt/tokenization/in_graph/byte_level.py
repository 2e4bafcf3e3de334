"""Byte-level BPE as TensorFlow operations: the same ids as the other encoders, inside a SavedModel.

Only core operations are used, so a server needs no custom library. There is no state. Memory is about 70 bytes for each
byte of a batch, so a server should limit them. Each step works on the flat bytes of the batch: bytes → characters →
pre-tokens → BPE, which in each round joins all occurrences of every pre-token's lowest-ranked pair. The length of our
pre-tokens limits the rounds; those of pretrained models have no limit, and a word of 30,000 letters takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tokenizers

from tfgpt.common.errors import UserError
from tfgpt.tokenization.in_graph.nfc import NFC
from tfgpt.tokenization.in_graph.pretokenizers import RULES, InGraphPretokenizer
from tfgpt.tokenization.in_graph.text_ops import (
    RAW,
    characters,
    following,
    join_with_tokens,
    position_in_run,
    preceding,
    split_at_tokens,
    utf8_bytes,
)
from tfgpt.tokenization.jinja_template import ESCAPE, ITSELF
from tfgpt.tokenization.pretokenizer import pretrained_family
from tfgpt.tokenization.tokenizer import Tokenizer

NO_RANK = np.int32(2**31 - 1)  # of a pair without a merge
HASH_BUCKETS = 2**62


class InGraphTokenizer(tf.Module):
    """Encodes and decodes batches of strings with core TensorFlow operations.

    Args:
        tokenizer: a tokenizer that tfgpt trained, or one of a family in `pretokenizer.FAMILIES`. UserError for others.

    Example:

    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> in_graph = InGraphTokenizer(byte_tokenizer())
    >>> in_graph.encode(["Hi", "!"]).to_list()
    [[72, 105], [33]]
    >>> in_graph.decode([[72, 105], [33, 33]]).numpy().tolist()
    [b'Hi', b'!!']
    """

    def __init__(self, tokenizer: Tokenizer, name: str = "in_graph_tokenizer"):
        super().__init__(name=name)
        reason = tokenizer.in_graph_limitation
        if reason:
            raise UserError(f"{tokenizer.origin}: cannot be run inside the TensorFlow graph: {reason}")
        self._lossy = bool(tokenizer.missing_bytes)
        with tf.device("CPU:0"):
            self._id_of_byte = tf.constant(tokenizer.id_of_byte)
            self._token_bytes = tf.constant(tokenizer.token_bytes(), tf.string)
        added = tokenizer.document["added_tokens"]
        self._added_tokens = {token["content"]: token["id"] for token in added if not token["special"]}
        self._normalizer = NFC() if tokenizer.document.get("normalizer") else None
        self._pretokenizer: InGraphPretokenizer | None = None
        self._merger: BytePairMerger | None = None
        self._ignore_merges: IgnoreMergesLookup | None = None
        if tokenizer.merges:
            family = pretrained_family(tokenizer.document)
            self._pretokenizer = InGraphPretokenizer(RULES[family] if family else None)
            self._merger = BytePairMerger(tokenizer.merges, tokenizer.vocabulary_size)
            if unmerged := unmerged_tokens(tokenizer):
                self._ignore_merges = IgnoreMergesLookup(unmerged)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Encodes [B] strings of any bytes to RaggedTensor [B, (ids)] int32, without special tokens."""
        with tf.device("CPU:0"):
            if not self._added_tokens:
                return self._encode_texts(texts)
            escaped = tf.strings.regex_replace(texts, ESCAPE, ITSELF)
            parts, has_token, token_ids = split_at_tokens(escaped, self._added_tokens)
            encoded = self._encode_texts(tf.strings.regex_replace(parts.flat_values, ITSELF, ESCAPE))
            return join_with_tokens(parts, encoded, has_token, token_ids)

    def _encode_texts(self, texts: tf.Tensor) -> tf.RaggedTensor:
        rows = tf.repeat(tf.range(tf.size(texts)), tf.strings.length(texts))  # (T): the text of each byte
        contents = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(texts), tf.uint8), tf.int32)  # (T)
        first = rows != preceding(rows, 1, filler=-1)
        if self._normalizer is not None:
            code_points, valid, where = characters(contents, first)
            raw = RAW + tf.gather(contents, where)
            normalized = self._normalizer(tf.where(valid, code_points, raw), tf.gather(rows, where))
            contents, rows = utf8_bytes(*normalized)
            first = rows != preceding(rows, 1, filler=-1)
        ids = self._ids(contents, first)
        ids, rows = tf.boolean_mask(ids, ids >= 0), tf.boolean_mask(rows, ids >= 0)
        return tf.RaggedTensor.from_value_rowids(ids, tf.cast(rows, tf.int64), tf.size(texts, tf.int64), validate=False)

    def _ids(self, contents: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Returns [T] int32: the id of each token at its first byte; -1 elsewhere and at bytes without a token."""
        ids = tf.gather(self._id_of_byte, contents)
        if self._pretokenizer is None or self._merger is None:
            return ids
        words = tf.cumsum(tf.cast(self._pretokenizer(contents, first), tf.int32)) - 1
        known, left = tf.fill([tf.size(ids)], -1), ids >= 0
        if self._ignore_merges is not None:
            known, found = self._ignore_merges(contents, words)
            left &= ~found
        elif not self._lossy:
            return self._merger(ids, words)
        positions = tf.where(left)
        merged = self._merger(tf.gather_nd(ids, positions), tf.gather_nd(words, positions))
        return tf.tensor_scatter_nd_update(known, positions, merged)

    def decode(self, ids: tf.RaggedTensor | tf.Tensor) -> tf.Tensor:
        """Decodes ids to bytes, without special tokens (including padding).

        Args:
            ids: RaggedTensor [B, (ids)] or tensor [B, T], int32. Ids outside the vocabulary raise InvalidArgumentError.

        Returns:
            [B] strings; not valid UTF-8 if the ids end inside a character.
        """
        with tf.device("CPU:0"):
            return tf.strings.reduce_join(tf.gather(self._token_bytes, ids), axis=-1)


class BytePairMerger(tf.Module):
    """Merges all pre-tokens of a batch in parallel; `merges` has (left, right, result) ids in order of rank."""

    def __init__(self, merges: Sequence[tuple[int, int, int]], vocabulary_size: int):
        super().__init__()
        left, right, result = np.array(merges, np.int64).T
        keys = left * vocabulary_size + right
        order = np.argsort(keys)
        self._vocabulary_size = vocabulary_size
        with tf.device("CPU:0"):
            self._keys = tf.constant(keys[order])
            self._ranks = tf.constant(order.astype(np.int32))
            self._results = tf.constant(result.astype(np.int32))

    def __call__(self, ids: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
        """Returns [T] int32: the id of each token at its first byte, -1 elsewhere.

        Args:
            ids: [T] int32 ids of the bytes.
            words: [T] int32, ascending: the pre-token of each byte.
        """
        result, *_ = tf.while_loop(
            lambda result, positions, ids, words: tf.size(ids) > 0,
            self._round,
            [ids, tf.range(tf.size(ids)), ids, words],
            shape_invariants=[tf.TensorShape([None])] * 4,
            parallel_iterations=1,
        )
        return result

    def _round(
        self, result: tf.Tensor, positions: tf.Tensor, ids: tf.Tensor, words: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        # One merge, at all its occurrences, in every word. positions, ids and words (m) are those of the tokens of
        # unfinished words; result (T) is indexed by positions.
        starts = words != preceding(words, 1, filler=-1)
        words = tf.cumsum(tf.cast(starts, tf.int32)) - 1  # numbered without gaps
        wide = tf.cast(ids, tf.int64)
        keys = wide * self._vocabulary_size + following(wide, tf.constant(0, tf.int64))
        index = tf.minimum(tf.searchsorted(self._keys, keys), tf.size(self._keys) - 1)
        known = (tf.gather(self._keys, index) == keys) & ~following(starts, True)  # with the next token in its word
        ranks = tf.where(known, tf.gather(self._ranks, index), NO_RANK)  # (m)
        best = tf.gather(tf.math.segment_min(ranks, words), words)
        joins = (ranks == best) & (ranks != NO_RANK)
        joins &= position_in_run(joins) % 2 == 0  # of "aaaa" join (aa)(aa), not the overlapping pair between
        joined = preceding(joins, 1)
        new = tf.gather(self._results, tf.where(joins, ranks, 0))
        ids = tf.where(joins, new, tf.where(joined, -1, ids))
        changed = joins | joined
        result = tf.tensor_scatter_nd_update(
            result, tf.boolean_mask(positions, changed)[:, None], tf.boolean_mask(ids, changed)
        )
        left = tf.where(~joined & (best != NO_RANK))[:, 0]
        return result, tf.gather(positions, left), tf.gather(ids, left), tf.gather(words, left)


class IgnoreMergesLookup(tf.Module):
    """Finds the pre-tokens that equal one of `tokens` (bytes, id), which BPE does not split."""

    def __init__(self, tokens: Sequence[tuple[bytes, int]]):
        super().__init__()
        with tf.device("CPU:0"):
            self._bytes = tf.constant([bytes([byte]) for byte in range(256)])
            contents = tf.constant([content for content, _ in tokens])
            hashes = tf.strings.to_hash_bucket_fast(contents, HASH_BUCKETS)
            order = tf.argsort(hashes)
            self._hashes, self._tokens = tf.gather(hashes, order), tf.gather(contents, order)
            self._ids = tf.gather(tf.constant([identifier for _, identifier in tokens], tf.int32), order)
        if len(set(hashes.numpy())) != len(tokens):
            raise ValueError("two tokens have the same hash")

    def __call__(self, contents: tf.Tensor, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns [T] int32 ids at the first bytes of pre-tokens that are tokens, else -1, and [T] bool their bytes.

        Args:
            contents: [T] int32 bytes.
            words: [T] int32, ascending from 0 without gaps: the pre-token of each byte.
        """
        starts = words != preceding(words, 1, filler=-1)
        count = tf.math.count_nonzero(starts, dtype=tf.int32)
        strings = tf.strings.unsorted_segment_join(tf.gather(self._bytes, contents), words, count)  # (W)
        index = tf.searchsorted(self._hashes, tf.strings.to_hash_bucket_fast(strings, HASH_BUCKETS))
        index = tf.minimum(index, tf.size(self._hashes) - 1)
        ids = tf.where(tf.gather(self._tokens, index) == strings, tf.gather(self._ids, index), -1)
        ids = tf.gather(ids, words)
        return tf.where(starts, ids, -1), ids >= 0


def unmerged_tokens(tokenizer: Tokenizer) -> list[tuple[bytes, int]]:
    """Returns (bytes, id) of tokens that BPE of their bytes does not make, for Llama 3's `ignore_merges`."""
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
