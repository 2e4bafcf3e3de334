"""Rendered conversations to ids inside the TensorFlow graph, equal to `chat_template.encode_messages`."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.tokenization.chat_template import END_OF_TURN, START_OF_TURN
from tfgpt.tokenization.in_graph import InGraphTokenizer
from tfgpt.tokenization.tokenizer import Tokenizer

# `chat_template.MARK` with at least one backslash, and what it stood for.
ESCAPED, ORIGINAL = r"<\\(\\*)\|", r"<\1|"


def encode_conversations(tokenizer: Tokenizer, in_graph: InGraphTokenizer, conversations: tf.Tensor) -> tf.RaggedTensor:
    """The ids of conversations as `chat_template.render_messages` writes them.

    Args:
        tokenizer: whose special tokens the marks become.
        in_graph: the same tokenizer's operations.
        conversations: [B] strings.

    Returns:
        RaggedTensor [B, (ids)] int32; first what texts begin with (`Tokenizer.start_ids`), the end-of-text token of our
        own models.
    """
    # [B, (turns), (parts)]: each part stands behind a start mark, an end mark or (the first one) the end of a text.
    parts = tf.strings.split(tf.strings.split(conversations, START_OF_TURN), END_OF_TURN)
    turn_splits, row_splits = parts.values.row_splits, parts.row_splits
    count = tf.size(parts.flat_values, tf.int64)
    marks = tf.fill([count], tokenizer.end_of_turn_id)
    marks = _filled_at(marks, turn_splits[:-1], tokenizer.start_of_turn_id)
    marks = _filled_at(marks, tf.gather(turn_splits, row_splits[:-1]), next(iter(tokenizer.start_ids), -1))
    texts = tf.strings.regex_replace(parts.flat_values, ESCAPED, ORIGINAL)
    ids = tf.concat([marks[:, None], in_graph.encode(texts)], 1)  # [all parts, (ids)]
    splits = tf.gather(tf.cast(ids.row_splits, tf.int64), tf.gather(turn_splits, row_splits))
    whole = tf.RaggedTensor.from_row_splits(ids.values, splits, validate=False)
    return whole if tokenizer.start_ids else tf.ragged.boolean_mask(whole, whole >= 0)


def _filled_at(values: tf.Tensor, places: tf.Tensor, value: int) -> tf.Tensor:
    return tf.tensor_scatter_nd_update(values, places[:, None], tf.fill([tf.size(places)], value))
