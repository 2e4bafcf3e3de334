"""Attention against its definition in NumPy, and the two faster forms against the plain one."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.model.attention_mask import causal_mask
from tfgpt.model.softmax_attention import attend, attend_causally, attend_with_cache


def heads(length: int, count: int, seed: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=(2, length, count, 8)), tf.float32)


def by_definition(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: np.ndarray) -> np.ndarray:
    """softmax(Q K^T + mask) V, head by head, with keys and values repeated for the query heads of a group."""
    group = query.shape[2] // key.shape[2]
    key, value = np.repeat(key, group, 2), np.repeat(value, group, 2)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)
    return mixed.reshape(*mixed.shape[:2], -1)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("length", [12, 256])  # 256 queries are taken in several pieces
def test_causal_attention_has_the_values_and_gradients_of_the_definition(length: int, window: int | None):
    arguments = heads(length, 4, 0), heads(length, 2, 1), heads(length, 2, 2)
    mask = causal_mask(length, window)
    upstream = tf.constant(np.random.default_rng(3).normal(size=(2, length, 32)), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(arguments)
        plain, faster = attend(*arguments, mask), attend_causally(*arguments, tf.constant(mask), window)
    np.testing.assert_allclose(plain, by_definition(*arguments, np.asarray(mask)[:, :, 0]), atol=2e-5)
    np.testing.assert_allclose(faster, plain, atol=2e-5)
    for mine, expected in zip(
        tape.gradient(faster, arguments, upstream), tape.gradient(plain, arguments, upstream), strict=True
    ):
        np.testing.assert_allclose(mine, expected, atol=2e-4)


def test_attention_to_a_cache_in_parts_is_attention_to_all_of_it():
    query, key, value = heads(3, 4, 0), heads(10, 2, 1), heads(10, 2, 2)
    mask = np.where(np.arange(10) <= np.array([[5], [8], [9]]), 0, -1e9).astype(np.float32)
    swapped = [np.swapaxes(part, 1, 2) for part in (key, value)]
    first = (tf.constant(np.swapaxes(swapped[0][:, :, :6], 2, 3)), tf.constant(swapped[1][:, :, :6]), True)
    rest = (tf.constant(swapped[0][:, :, 6:]), tf.constant(swapped[1][:, :, 6:]), False)
    found = attend_with_cache(query, [first, rest], tf.constant(mask[None, None, None]))
    np.testing.assert_allclose(found, by_definition(query, key, value, mask), atol=2e-5)
