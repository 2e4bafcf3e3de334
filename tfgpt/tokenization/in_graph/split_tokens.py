"""Splitting of texts at tokens that stand in them by name, as TensorFlow operations."""

from __future__ import annotations

import re
from collections.abc import Mapping

import tensorflow as tf

from tfgpt.tokenization.jinja_template import ESCAPE

CUT = f"{ESCAPE}2"
"""Put around the names. In the texts, ESCAPE must be followed by 0 or 1."""


def split_at_tokens(texts: tf.Tensor, ids: Mapping[str, int]) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
    """Splits texts at the names of tokens; of names that begin at one position, the longest is found.

    Args:
        texts: [B] strings.
        ids: id of each name.

    Returns:
        RaggedTensor [B, (P)] of the parts: text and name take turns, and names are replaced by "". [all parts] int64,
        1 for a name. [all parts] int32, the ids of the names.
    """
    names = sorted(ids, key=len, reverse=True)
    if names:
        texts = tf.strings.regex_replace(texts, f"({'|'.join(map(re.escape, names))})", rf"{CUT}\1{CUT}")
    parts = tf.strings.split(texts, CUT)
    is_name = tf.ragged.range(parts.row_lengths()).flat_values % 2
    which = tf.argmax(parts.flat_values[:, None] == tf.constant(names or [""]), 1)
    found = tf.gather(tf.constant([ids[name] for name in names] or [0], tf.int32), which)
    return parts.with_flat_values(tf.where(is_name == 1, "", parts.flat_values)), is_name, found


def join_with_tokens(
    parts: tf.RaggedTensor, encoded: tf.RaggedTensor, has_token: tf.Tensor, token_ids: tf.Tensor
) -> tf.RaggedTensor:
    """Joins the ids of parts to those of whole texts.

    Args:
        parts: RaggedTensor [B, (P)].
        encoded: RaggedTensor [all parts, (ids)] int32.
        has_token: [all parts] int64, 1 if a token comes before the ids of the part.
        token_ids: [all parts] int32 ids of these tokens.

    Returns:
        RaggedTensor [B, (ids)] int32.
    """
    tokens = tf.RaggedTensor.from_row_lengths(tf.boolean_mask(token_ids, has_token > 0), has_token, validate=False)
    joined = tf.concat([tokens, encoded], 1)
    splits = tf.gather(tf.cast(joined.row_splits, tf.int64), parts.row_splits)
    return tf.RaggedTensor.from_row_splits(joined.values, splits, validate=False)
