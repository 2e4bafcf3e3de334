"""Softmax attention of grouped heads: one plain form, and one with its own gradient for training."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Piece = tuple[Any, Any, Any]
CachePart = tuple[tf.Tensor, tf.Tensor, bool]


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: Any, drop: Any = None) -> tf.Tensor:
    """Softmax attention; the queries of one group stand side by side, so keys and values are never repeated.

    Args:
        query: [batch, length, query heads, head_dim], already scaled.
        key: [batch, slots, key-value heads, head_dim]; query head h reads key-value head h // group.
        value: as key.
        mask: float32, broadcast to [batch, 1, 1, length, slots].
        drop: called on the attention weights.

    Returns:
        [batch, length, query heads x head_dim].
    """
    groups = key.shape[2]
    key, value = swap_heads(key), swap_heads(value)  # (batch, groups, slots, head_dim)
    weights = attention_weights(group_heads(query, groups), key, mask, query)
    if drop is not None:
        weights = drop(weights)
    return ungroup_heads(tf.matmul(weights, value), query)


def attend_in_parts(query: tf.Tensor, parts: list[CachePart], mask: tf.Tensor) -> tf.Tensor:
    """`attend` to keys and values that lie in several tensors, one after another, heads first.

    Args:
        query: as `attend`'s.
        parts: each part's keys and values [batch, key-value heads, its slots, head_dim], and whether its keys are laid
            out [batch, key-value heads, head_dim, its slots] instead.
        mask: as `attend`'s, over the slots of all parts.

    Returns:
        As `attend`'s.
    """
    _, first_values, _ = parts[0]
    grouped = group_heads(query, first_values.shape[1])
    scores = [tf.matmul(grouped, keys, transpose_b=not transposed) for keys, _, transposed in parts]
    slots = [values.shape[2] or tf.shape(values)[2] for _, values, _ in parts]
    weights = masked_softmax(scores[0] if len(parts) == 1 else tf.concat(scores, -1), mask, query, query.dtype)
    pieces = [weights] if len(parts) == 1 else tf.split(weights, slots, -1)
    mixed = tf.add_n([tf.matmul(piece, values) for piece, (_, values, _) in zip(pieces, parts)])
    return ungroup_heads(mixed, query)


def attend_causally(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor, window: int | None
) -> tf.Tensor:
    """`attend` of a sequence to itself, faster in training: same numbers, with a gradient of its own.

    The queries are taken in `query_chunks` pieces, and keys that no query of a piece may see are left out of it. The
    gradient uses that the row sums of weights x their gradients are those of outputs x theirs (Dao et al. 2022,
    FlashAttention, section 3.1), which saves two passes over the weights. Measured on 2 cores (float32, graph and
    XLA): 5 to 30% less time at 256 tokens, 40% at 1024.

    Args:
        query, key, value, mask: as `attend`'s, with as many slots as queries.
        window: the sliding window, or None.
    """
    pieces = query_chunks(query.shape[1], window)
    groups = key.shape[2]

    @tf.custom_gradient
    def attention(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, Any]:
        keys, values = swap_heads(key), swap_heads(value)  # (batch, groups, length, head_dim)
        queries = tf.split(query, len(pieces), 1)
        weights, outputs = [], []
        for piece, (start, first, last) in zip(queries, pieces):
            visible = mask if last is None else mask[..., first:last, start:last]
            seen = attention_weights(group_heads(piece, groups), part(keys, start, last), visible, piece)
            weights.append(seen)
            outputs.append(ungroup_heads(tf.matmul(seen, part(values, start, last)), piece))
        output = tf.concat(outputs, 1)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            upstream = tf.reshape(upstream, sizes(query))
            products = tf.cast(upstream, tf.float32) * tf.cast(tf.reshape(output, sizes(query)), tf.float32)
            sums = tf.cast(tf.reduce_sum(products, -1, keepdims=True), query.dtype)  # (batch, length, heads, 1)
            upstreams, sums = tf.split(upstream, len(pieces), 1), tf.split(sums, len(pieces), 1)
            to_queries, to_keys, to_values = [], [], []
            for place, (start, _, last) in enumerate(pieces):
                piece, above, seen = queries[place], group_heads(upstreams[place], groups), weights[place]
                to_weights = tf.matmul(above, part(values, start, last), transpose_b=True)
                to_scores = seen * (to_weights - group_heads(sums[place], groups))
                to_queries.append(ungroup_heads(tf.matmul(to_scores, part(keys, start, last)), piece))
                to_keys.append(tf.matmul(to_scores, group_heads(piece, groups), transpose_a=True))
                to_values.append(tf.matmul(seen, above, transpose_a=True))
            to_query = tf.reshape(tf.concat(to_queries, 1), sizes(query))
            return to_query, swap_heads(summed_pieces(to_keys, pieces)), swap_heads(summed_pieces(to_values, pieces))

        return output, gradient

    return attention(query, key, value)


def query_chunks(length: int | None, window: int | None) -> list[Piece]:
    """Pieces of a causal attention: (first key, first query, end of both); one piece where the length is unknown."""
    count = max((n for n in (4, 2, 1) if length is not None and length % n == 0 and length // n >= 64), default=1)
    if length is None or count == 1:
        return [(None, None, None)]
    size = length // count
    first = [max(0, place * size - window + 1) // size * size if window else 0 for place in range(count)]
    return [(first[place], place * size, (place + 1) * size) for place in range(count)]


def summed_pieces(gradients: list[tf.Tensor], pieces: list[Piece]) -> tf.Tensor:
    """The sum of gradients by keys, each [batch, groups, its keys, head_dim], at their places in the whole."""
    end = pieces[-1][2]
    total = at_place(gradients[-1], pieces[-1][0] or 0, 0)
    for gradient, (start, _, last) in zip(gradients[:-1], pieces[:-1]):
        total += at_place(gradient, start, end - last)
    return total


def at_place(gradient: tf.Tensor, before: int, after: int) -> tf.Tensor:
    """[batch, groups, keys, head_dim] with zeros before and after the keys."""
    return tf.pad(gradient, [[0, 0], [0, 0], [before, after], [0, 0]]) if before or after else gradient


def part(heads: tf.Tensor, start: int | None, last: int | None) -> tf.Tensor:
    """Positions `start` to `last` of [batch, heads, length, head_dim]."""
    return heads if last is None else heads[:, :, start:last]


def swap_heads(heads: tf.Tensor) -> tf.Tensor:
    """[batch, length, heads, head_dim] ↔ [batch, heads, length, head_dim]."""
    return tf.transpose(heads, [0, 2, 1, 3])


def sizes(heads: tf.Tensor) -> list[Any]:
    """The shape of [batch, length, heads, head_dim]: integers where known."""
    return [tf.shape(heads)[axis] if size is None else size for axis, size in enumerate(heads.shape.as_list())]


def group_heads(heads: tf.Tensor, groups: int) -> tf.Tensor:
    """[batch, length, heads, size] → [batch, groups, heads per group x length, size]."""
    batch, length, count, size = sizes(heads)
    if count == groups:
        return swap_heads(heads)
    grouped = tf.transpose(tf.reshape(heads, [batch, length, groups, count // groups, size]), [0, 2, 3, 1, 4])
    return tf.reshape(grouped, [batch, groups, count // groups * length, size])


def ungroup_heads(grouped: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """The reverse of `group_heads`, with the heads side by side: [batch, length, heads x head_dim].

    Args:
        grouped: [batch, groups, heads per group x length, head_dim].
        like: the query, [batch, length, heads, head_dim], for its sizes.
    """
    batch, length, count, size = sizes(like)
    groups = grouped.shape[1]
    if count == groups:
        return tf.reshape(swap_heads(grouped), [batch, length, count * size])
    grouped = tf.transpose(tf.reshape(grouped, [batch, groups, count // groups, length, size]), [0, 3, 1, 2, 4])
    return tf.reshape(grouped, [batch, length, count * size])


def attention_weights(grouped: tf.Tensor, key: tf.Tensor, mask: Any, like: tf.Tensor) -> tf.Tensor:
    """Softmax of the masked scores, taken in float32, in the compute dtype.

    Args:
        grouped: [batch, groups, heads per group x length, head_dim].
        key: [batch, groups, slots, head_dim].
        mask: as `attend`'s.
        like: as `ungroup_heads`'s.

    Returns:
        [batch, groups, heads per group x length, slots].
    """
    return masked_softmax(tf.matmul(grouped, key, transpose_b=True), mask, like, key.dtype)


def masked_softmax(scores: tf.Tensor, mask: Any, like: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Softmax, taken in float32, of scores [batch, groups, heads per group x length, slots]; `mask` as `attend`'s."""
    batch, length, count, _ = sizes(like)
    groups, slots = scores.shape[1], scores.shape[3] or tf.shape(scores)[3]
    scores = tf.reshape(tf.cast(scores, tf.float32), [batch, groups, count // groups, length, slots]) + mask
    return tf.cast(tf.reshape(tf.nn.softmax(scores), [batch, groups, count // groups * length, slots]), dtype)
