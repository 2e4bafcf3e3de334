"""What a model makes of given texts, inside a graph: their log-likelihood and their embedding.

A text longer than the context is read in the windows in which it would have been written (`decode_steps.window_start`),
so its log-likelihood is the sum of the log probabilities that generation gives for the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfgpt.generation.decode_steps import DecodeFunctions, window_start

# Positions whose logits are held at a time: 64 of 8 rows with 50,000 tokens take 100 MB.
LOGIT_POSITIONS = 64


def log_likelihood(
    decoding: DecodeFunctions, ids: tf.Tensor, lengths: tf.Tensor, counted: tf.Tensor | None = None
) -> tf.Tensor:
    """The natural log probability of each row's tokens behind its first one: [batch] float32.

    Args:
        decoding: the model's functions.
        ids: [batch, length] int32; what is behind a row's length is not read.
        lengths: [batch] int32, at least 1.
        counted: [batch, length] bool, which tokens count; None for all.
    """
    # Every place with a next token is asked for it.
    following = tf.pad(ids[:, 1:], [[0, 0], [0, 1]])
    asked = tf.sequence_mask(lengths - 1, tf.shape(ids)[1])
    if counted is not None:
        asked &= tf.pad(counted[:, 1:], [[0, 0], [0, 1]])

    def of_window(hidden: tf.Tensor, places: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        targets = tf.gather(following, places, axis=1)
        wanted = new & tf.gather(asked, places, axis=1)

        def piece(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            end = start + LOGIT_POSITIONS
            logits = decoding.decoder.logits(hidden[:, start:end])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets[:, start:end], logits)
            return end, total - tf.reduce_sum(tf.where(wanted[:, start:end], losses, 0.0), 1)

        width = tf.shape(hidden)[1]
        zeros = tf.zeros([tf.shape(hidden)[0]])
        return tf.while_loop(lambda start, _: start < width, piece, [0, zeros], parallel_iterations=1)[1]

    return _sum_over_windows(decoding, ids, lengths, of_window, [])


def embedding(decoding: DecodeFunctions, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """The mean of the last hidden states (after the final norm) of each row's tokens: [batch, hidden_dim] float32.

    The first token, which stands before the text, counts only where there is no other.

    Args:
        decoding, ids, lengths: as `log_likelihood`'s.
    """

    def of_window(hidden: tf.Tensor, places: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        counted = new & (places < lengths[:, None]) & ((places > 0) | (lengths[:, None] == 1))
        return tf.reduce_sum(tf.where(counted[:, :, None], tf.cast(hidden, tf.float32), 0.0), 1)

    total = _sum_over_windows(decoding, ids, lengths, of_window, [decoding.decoder.config.hidden_dim])
    return total / tf.cast(tf.maximum(lengths - 1, 1), tf.float32)[:, None]


def _sum_over_windows(
    decoding: DecodeFunctions,
    ids: tf.Tensor,
    lengths: tf.Tensor,
    of_window: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    shape: list[int],
) -> tf.Tensor:
    """The sum of a function of each window: [batch, *shape] float32.

    Args:
        of_window: called with hidden states [batch, width, hidden_dim], their places in the row [width], and which
            of them [1, width] no earlier window had.
    """
    context = decoding.decoder.config.max_sequence_length
    longest = tf.reduce_max(tf.concat([lengths, [0]], 0))

    def window(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        places = tf.range(start, tf.minimum(start + context, longest))
        hidden = decoding.hidden_states(tf.gather(ids, places, axis=1))
        new = window_start(places + 1, context) == start
        return start + window_start(tf.constant(context + 1), context), total + of_window(hidden, places, new[None])

    zeros = tf.zeros([tf.shape(ids)[0], *shape])
    # The last window is the one from which the text would go on.
    last = window_start(longest, context)
    state = [tf.constant(0), zeros]
    return tf.while_loop(lambda start, _: start <= last, window, state, parallel_iterations=1)[1]
