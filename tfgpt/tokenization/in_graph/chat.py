"""Encoding of rendered conversations as TensorFlow operations."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.tokenization.chat_template import get_chat_template
from tfgpt.tokenization.in_graph.byte_level import InGraphTokenizer
from tfgpt.tokenization.in_graph.text_ops import join_with_tokens, split_at_tokens
from tfgpt.tokenization.jinja_template import BREAK, ESCAPE, ITSELF
from tfgpt.tokenization.tokenizer import Tokenizer


def encode_conversations(tokenizer: Tokenizer, in_graph: InGraphTokenizer, conversations: tf.Tensor) -> tf.RaggedTensor:
    """Encodes texts of `ChatTemplate.render` to the ids of `encode_messages`.

    If a conversation lacks the special token that every conversation of the template begins with (such as our
    end-of-text), it is added.

    Returns:
        RaggedTensor [B, (ids)] int32.
    """
    parts, has_token, special_ids = split_at_tokens(conversations, tokenizer.special_tokens)
    texts = tf.strings.regex_replace(tf.strings.regex_replace(parts.flat_values, BREAK, ""), ITSELF, ESCAPE)
    first = _first_special_id(tokenizer)
    if first is not None:
        row_starts, row_lengths = parts.row_splits[:-1], parts.row_lengths()
        # A row of one part has no special token; of three or more, the second is one.
        seconds = tf.gather(special_ids, tf.minimum(row_starts + 1, tf.size(special_ids, tf.int64) - 1))
        begins = (row_lengths > 1) & (seconds == first) & (tf.gather(texts, row_starts) == "")
        has_token = tf.tensor_scatter_nd_update(has_token, row_starts[:, None], tf.cast(~begins, tf.int64))
        firsts = tf.fill([tf.size(row_starts)], first)
        special_ids = tf.tensor_scatter_nd_update(special_ids, row_starts[:, None], firsts)
    return join_with_tokens(parts, in_graph.encode(texts), has_token, special_ids)


def _first_special_id(tokenizer: Tokenizer) -> int | None:
    template, firsts = get_chat_template(tokenizer), set()
    question = {"role": "user", "content": "a"}
    for messages in ([question], [{"role": "system", "content": "b"}, question]):
        try:
            text = template.render(messages)
        except UserError:  # Some templates refuse system messages.
            continue
        special, start, end = template.split_special_tokens(text)[0]
        firsts.add(tokenizer.special_tokens[text[start:end]] if special and start == 0 else None)
    return firsts.pop() if len(firsts) == 1 else None
