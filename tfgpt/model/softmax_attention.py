"""Softmax attention of grouped heads: plain, over a cache in parts, and with a custom gradient for training."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Piece = tuple[Any, Any, Any]
CachePart = tuple[tf.Tensor, tf.Tensor, bool]


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: Any, drop: Any = None) -> tf.Tensor:
    """Computes softmax attention. Keys and values are not repeated: the queries of a group are rows of one matrix.

    Args:
        query: [batch, length, query heads, head_dim], already scaled.
        key: [batch, slots, key-value heads, head_dim]; query head h reads key-value head h // group.
        value: as key.
        mask: float32, broadcast to [batch, 1, 1, length, slots].
        drop: a function of the attention weights, for dropout.

    Returns:
        [batch, length, query heads x head_dim].
    """
    groups = key.shape[2]
    key, value = swap_heads(key), swap_heads(value)  # (batch, groups, slots, head_dim)
    scores = tf.matmul(group_heads(query, groups), key, transpose_b=True)
    weights = masked_softmax(scores, mask, query, key.dtype)
    if drop is not None:
        weights = drop(weights)
    return ungroup_heads(tf.matmul(weights, value), query)


def attend_with_cache(query: tf.Tensor, parts: list[CachePart], mask: tf.Tensor) -> tf.Tensor:
    """Computes `attend` to keys and values that are split along the slots into several tensors.

    Args:
        query: [batch, length, query heads, head_dim], already scaled.
        parts: for each part, keys and values [batch, key-value heads, its slots, head_dim], and whether its keys are
            stored as [batch, key-value heads, head_dim, its slots] instead.
        mask: float32, broadcast to [batch, 1, 1, length, all slots].

    Returns:
        [batch, length, query heads x head_dim].
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
    """Computes `attend` of a sequence to itself, faster in training (docs/measurements.md).

    The queries are split into the pieces of `query_chunks`, without the keys that no query of a piece sees. The custom
    gradient saves two passes over the weights: row sums of weights x their gradients equal those of outputs x theirs
    (Dao et al. 2022, FlashAttention, section 3.1).

    Args:
        query, key, value, mask: the arguments of `attend`, with as many slots as queries.
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
            scores = tf.matmul(group_heads(piece, groups), part(keys, start, last), transpose_b=True)
            weights.append(masked_softmax(scores, visible, piece, keys.dtype))
            outputs.append(ungroup_heads(tf.matmul(weights[-1], part(values, start, last)), piece))
        output = tf.concat(outputs, 1)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            upstream = tf.reshape(upstream, sizes(query))
            products = tf.cast(upstream, tf.float32) * tf.cast(tf.reshape(output, sizes(query)), tf.float32)
            sums = tf.cast(tf.reduce_sum(products, -1, keepdims=True), query.dtype)  # (batch, length, heads, 1)
            upstreams, sums = tf.split(upstream, len(pieces), 1), tf.split(sums, len(pieces), 1)
            to_queries, to_keys, to_values = [], [], []
            for index, (start, _, last) in enumerate(pieces):
                piece, above, seen = queries[index], group_heads(upstreams[index], groups), weights[index]
                to_weights = tf.matmul(above, part(values, start, last), transpose_b=True)
                to_scores = seen * (to_weights - group_heads(sums[index], groups))
                to_queries.append(ungroup_heads(tf.matmul(to_scores, part(keys, start, last)), piece))
                to_keys.append(tf.matmul(to_scores, group_heads(piece, groups), transpose_a=True))
                to_values.append(tf.matmul(seen, above, transpose_a=True))
            to_query = tf.reshape(tf.concat(to_queries, 1), sizes(query))
            return to_query, swap_heads(sum_pieces(to_keys, pieces)), swap_heads(sum_pieces(to_values, pieces))

        return output, gradient

    return attention(query, key, value)


def query_chunks(length: int | None, window: int | None) -> list[Piece]:
    """Returns the pieces of a causal attention: (first key, first query, end of both). One piece if unknown."""
    count = max((n for n in (4, 2, 1) if length is not None and length % n == 0 and length // n >= 64), default=1)
    if length is None or count == 1:
        return [(None, None, None)]
    size = length // count
    first = [max(0, index * size - window + 1) // size * size if window else 0 for index in range(count)]
    return [(first[index], index * size, (index + 1) * size) for index in range(count)]


def sum_pieces(gradients: list[tf.Tensor], pieces: list[Piece]) -> tf.Tensor:
    """Adds up gradients [batch, groups, keys of a piece, head_dim] to those of all keys."""
    end = pieces[-1][2]
    total = pad_keys(gradients[-1], pieces[-1][0] or 0, 0)
    for gradient, (start, _, last) in zip(gradients[:-1], pieces[:-1]):
        total += pad_keys(gradient, start, end - last)
    return total


def pad_keys(gradient: tf.Tensor, before: int, after: int) -> tf.Tensor:
    return tf.pad(gradient, [[0, 0], [0, 0], [before, after], [0, 0]]) if before or after else gradient


def part(heads: tf.Tensor, start: int | None, last: int | None) -> tf.Tensor:
    return heads if last is None else heads[:, :, start:last]


def swap_heads(heads: tf.Tensor) -> tf.Tensor:
    """[batch, length, heads, head_dim] ↔ [batch, heads, length, head_dim]."""
    return tf.transpose(heads, [0, 2, 1, 3])


def sizes(heads: tf.Tensor) -> list[Any]:
    """Returns the four sizes of a tensor: integers where known."""
    return [tf.shape(heads)[axis] if size is None else size for axis, size in enumerate(heads.shape.as_list())]


def group_heads(heads: tf.Tensor, groups: int) -> tf.Tensor:
    """[batch, length, heads, size] → [batch, groups, heads per group x length, size]."""
    batch, length, count, size = sizes(heads)
    if count == groups:
        return swap_heads(heads)
    grouped = tf.transpose(tf.reshape(heads, [batch, length, groups, count // groups, size]), [0, 2, 3, 1, 4])
    return tf.reshape(grouped, [batch, groups, count // groups * length, size])


def ungroup_heads(grouped: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[batch, groups, heads per group x length, head_dim] → [batch, length, heads x head_dim].

    Args:
        like: the query [batch, length, heads, head_dim], for its sizes.
    """
    batch, length, count, size = sizes(like)
    groups = grouped.shape[1]
    if count == groups:
        return tf.reshape(swap_heads(grouped), [batch, length, count * size])
    grouped = tf.transpose(tf.reshape(grouped, [batch, groups, count // groups, length, size]), [0, 3, 1, 2, 4])
    return tf.reshape(grouped, [batch, length, count * size])


def masked_softmax(scores: tf.Tensor, mask: Any, like: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Returns the softmax, taken in float32, of masked scores [batch, groups, heads per group x length, slots].

    Args:
        mask: float32, broadcast to [batch, 1, 1, length, slots].
        like: the query [batch, length, heads, head_dim], for its sizes.
        dtype: of the result.
    """
    batch, length, count, _ = sizes(like)
    groups, slots = scores.shape[1], scores.shape[3] or tf.shape(scores)[3]
    scores = tf.reshape(tf.cast(scores, tf.float32), [batch, groups, count // groups, length, slots]) + mask
    return tf.cast(tf.reshape(tf.nn.softmax(scores), [batch, groups, count // groups * length, slots]), dtype)
