"""Log-likelihoods and embeddings of texts, computed in the graph.

A text longer than the context is read in the windows of its generation (`decode_steps.window_start`), so its
log-likelihood is the sum of the log probabilities that generation gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfgpt.generation.decode_steps import DecodeFunctions, window_start

# Positions whose logits are in memory at a time: 64 of 8 rows with 50,000 tokens take 100 MB.
LOGIT_POSITIONS = 64


def log_likelihood(
    decoding: DecodeFunctions, ids: tf.Tensor, lengths: tf.Tensor, counted: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns the natural log probability of each row's tokens after its first one: [batch] float32.

    Args:
        ids: [batch, length] int32; positions after a row's length are ignored.
        lengths: [batch] int32, at least 1.
        counted: [batch, length] bool, the tokens that count; None for all.
    """
    next_ids = tf.pad(ids[:, 1:], [[0, 0], [0, 1]])
    has_next = tf.sequence_mask(lengths - 1, tf.shape(ids)[1])
    if counted is not None:
        has_next &= tf.pad(counted[:, 1:], [[0, 0], [0, 1]])

    def window_sum(hidden: tf.Tensor, positions: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        targets = tf.gather(next_ids, positions, axis=1)
        wanted = new & tf.gather(has_next, positions, axis=1)

        def add_slice(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            end = start + LOGIT_POSITIONS
            logits = decoding.decoder.logits(hidden[:, start:end])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets[:, start:end], logits)
            return end, total - tf.reduce_sum(tf.where(wanted[:, start:end], losses, 0.0), 1)

        width = tf.shape(hidden)[1]
        zeros = tf.zeros([tf.shape(hidden)[0]])
        return tf.while_loop(lambda start, _: start < width, add_slice, [0, zeros], parallel_iterations=1)[1]

    return _sum_over_windows(decoding, ids, lengths, window_sum, [])


def embedding(decoding: DecodeFunctions, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Returns the mean of the last hidden states (after the final norm) of each row: [batch, hidden_dim] float32.

    The first token, which stands before the text, counts only if there is no other.
    """

    def window_sum(hidden: tf.Tensor, positions: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        counted = new & (positions < lengths[:, None]) & ((positions > 0) | (lengths[:, None] == 1))
        return tf.reduce_sum(tf.where(counted[:, :, None], tf.cast(hidden, tf.float32), 0.0), 1)

    total = _sum_over_windows(decoding, ids, lengths, window_sum, [decoding.decoder.config.hidden_dim])
    return total / tf.cast(tf.maximum(lengths - 1, 1), tf.float32)[:, None]


def _sum_over_windows(
    decoding: DecodeFunctions,
    ids: tf.Tensor,
    lengths: tf.Tensor,
    window_sum: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    shape: list[int],
) -> tf.Tensor:
    """Returns the sum of a function over the windows: [batch, *shape] float32.

    Args:
        window_sum: a function of hidden states [batch, width, hidden_dim], their positions in the row [width], and
            the mask [1, width] of the positions that no earlier window has.
    """
    context = decoding.decoder.config.max_sequence_length
    longest = tf.reduce_max(tf.concat([lengths, [0]], 0))

    def add_window(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = tf.range(start, tf.minimum(start + context, longest))
        hidden = decoding.hidden_states(tf.gather(ids, positions, axis=1))
        new = window_start(positions + 1, context) == start
        return start + window_start(tf.constant(context + 1), context), total + window_sum(hidden, positions, new[None])

    # The text would continue from its last window.
    last = window_start(longest, context)
    state = [tf.constant(0), tf.zeros([tf.shape(ids)[0], *shape])]
    return tf.while_loop(lambda start, _: start <= last, add_window, state, parallel_iterations=1)[1]
