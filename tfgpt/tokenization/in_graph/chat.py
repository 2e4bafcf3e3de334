"""Encoding of rendered conversations as TensorFlow operations."""

from __future__ import annotations

import re

import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.tokenization.chat_template import get_chat_template
from tfgpt.tokenization.in_graph.byte_level import InGraphTokenizer
from tfgpt.tokenization.jinja_template import BREAK, ESCAPE, ITSELF
from tfgpt.tokenization.tokenizer import Tokenizer

CUT = f"{ESCAPE}2"
"""Put around special tokens; elsewhere ESCAPE is always followed by 0 or 1."""


def encode_conversations(tokenizer: Tokenizer, in_graph: InGraphTokenizer, conversations: tf.Tensor) -> tf.RaggedTensor:
    """Encodes texts of `ChatTemplate.render` to the ids of `encode_messages`.

    If a conversation lacks the special token that every conversation of the template begins with (such as our
    end-of-text), it is added.

    Args:
        tokenizer: the tokenizer.
        in_graph: operations of the same tokenizer.
        conversations: [B] strings.

    Returns:
        RaggedTensor [B, (ids)] int32.
    """
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    ids = [tokenizer.special_tokens[name] for name in names]
    if names:
        pattern = "|".join(re.escape(name) for name in names)
        conversations = tf.strings.regex_replace(conversations, f"({pattern})", rf"{CUT}\1{CUT}")
    parts = tf.strings.split(conversations, CUT)  # [B, (text, name, text, name, …, text)]
    index = tf.ragged.range(tf.cast(parts.row_lengths(), tf.int32)).flat_values
    special = index % 2 == 1
    which = tf.argmax(parts.flat_values[:, None] == tf.constant(names or [""])[None, :], 1)
    special_ids = tf.gather(tf.constant(ids or [0], tf.int32), which)
    texts = tf.where(special, "", parts.flat_values)
    texts = tf.strings.regex_replace(tf.strings.regex_replace(texts, BREAK, ""), ITSELF, ESCAPE)
    # Number of special tokens before the text of each part: the part itself, or the first of the conversation.
    before = tf.cast(special, tf.int64)
    first = _first_special_id(tokenizer)
    if first is not None:
        row_starts = parts.row_splits[:-1]
        rows = tf.cast(parts.row_lengths(), tf.int32)
        # A row of one part has no special token; of three or more, the second is one.
        seconds = tf.gather(special_ids, tf.minimum(row_starts + 1, tf.size(special_ids, tf.int64) - 1))
        begins = (rows > 1) & (seconds == first) & (tf.gather(texts, row_starts) == "")
        before = tf.tensor_scatter_nd_update(before, row_starts[:, None], tf.cast(~begins, tf.int64))
        special_ids = tf.tensor_scatter_nd_update(special_ids, row_starts[:, None], tf.fill([tf.size(rows)], first))
    marks = tf.RaggedTensor.from_row_lengths(tf.boolean_mask(special_ids, before > 0), before, validate=False)
    encoded = tf.concat([marks, in_graph.encode(texts)], 1)  # [all parts, (ids)]
    splits = tf.gather(tf.cast(encoded.row_splits, tf.int64), parts.row_splits)
    return tf.RaggedTensor.from_row_splits(encoded.values, splits, validate=False)


def _first_special_id(tokenizer: Tokenizer) -> int | None:
    """Returns the special token that all conversations of the template begin with, or None."""
    template, firsts = get_chat_template(tokenizer), set()
    for role in ("system", "user"):
        messages = [{"role": "user", "content": "a"}]
        if role == "system":
            messages.insert(0, {"role": "system", "content": "b"})
        try:
            text = template.render(messages)
        except UserError:  # Some templates refuse system messages.
            continue
        special, start, end = template.split_special_tokens(text)[0]
        firsts.add(tokenizer.special_tokens[text[start:end]] if special and start == 0 else None)
    return firsts.pop() if len(firsts) == 1 else None
