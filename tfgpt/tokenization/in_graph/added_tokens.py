"""Tokens that a pretrained tokenizer looks for in the text (Qwen's <tool_call>), inside the TensorFlow graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfgpt.tokenization.in_graph.vector_ops import preceding


class AddedTokens(tf.Module):
    """Finds tokens in texts, the longest where several begin.

    None of them may overlap another (`tokenizer_json.why_not_found`).

    Args:
        tokens: (bytes, id).
    """

    def __init__(self, tokens: Sequence[tuple[bytes, int]]):
        super().__init__()
        width = max(len(content) for content, _ in tokens)
        rows = np.array([list(content.ljust(width, b"\0")) for content, _ in tokens], np.int32)
        with tf.device("CPU:0"):
            self._rows = tf.constant(rows)
            self._lengths = tf.constant([len(content) for content, _ in tokens], tf.int32)
            self._ids = tf.constant([identifier for _, identifier in tokens], tf.int32)
            self._firsts = tf.constant(sorted({content[0] for content, _ in tokens}), tf.int32)

    def __call__(self, contents: tf.Tensor, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Cuts texts at the tokens in them.

        Args:
            contents: [T] int32 bytes.
            texts: [T] int32, ascending: the text of each.

        Returns:
            [T] int32 pieces, ascending: the tokens and what is between them; [T] bool, whether a byte is in none of the
            tokens; [n] int32 pieces of the tokens found, and [n] int32 their ids.
        """
        width, count = self._rows.shape[1], tf.size(contents)
        likely = tf.cast(tf.where(tf.reduce_any(contents[:, None] == self._firsts, 1))[:, 0], tf.int32)
        places = likely[:, None] + tf.range(width)  # (n, width)
        clipped = tf.minimum(places, tf.maximum(count - 1, 0))
        here = (places < count) & (tf.gather(texts, clipped) == tf.gather(texts, likely)[:, None])
        found = tf.where(here, tf.gather(contents, clipped), -1)
        behind = ~tf.sequence_mask(self._lengths, width)  # (tokens, width)
        equal = tf.reduce_all((found[:, None] == self._rows) | behind, 2)  # (n, tokens)
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
