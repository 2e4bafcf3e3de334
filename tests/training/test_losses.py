"""The cross-entropy with the output head: against TensorFlow's and Keras's own losses, and in chunks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.model.cost import automatic_chunk_tokens
from tfgpt.training.losses import FusedLinearCrossEntropy

TOKENS, WIDTH, VOCABULARY = 37, 12, 23


def example(dtype=tf.float32):
    generator = np.random.default_rng(0)
    hidden = tf.constant(generator.normal(size=(TOKENS, WIDTH)), dtype)
    head = tf.constant(generator.normal(size=(VOCABULARY, WIDTH)), tf.float32)
    targets = tf.constant(generator.integers(0, VOCABULARY, TOKENS), tf.int32)
    weights = tf.constant(generator.uniform(0.0, 2.0, TOKENS), tf.float32)
    return hidden, head, targets, weights


def naive(hidden, head, targets, weights, smoothing, z_loss, soft_cap):
    """The objective through Keras's loss and TensorFlow's gradients, all logits at once."""
    with tf.GradientTape() as tape:
        tape.watch([hidden, head])
        logits = tf.matmul(hidden, head, transpose_b=True)
        if soft_cap:
            logits = soft_cap * tf.tanh(logits / soft_cap)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
        losses = loss(tf.one_hot(targets, VOCABULARY), logits) + z_loss * tf.reduce_logsumexp(logits, -1) ** 2
        total = tf.reduce_sum(losses * weights)
    nats = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits) * weights)
    return total, nats, *tape.gradient(total, [hidden, head])


def ours(hidden, head, targets, weights, smoothing, z_loss, soft_cap, chunk):
    cross_entropy = FusedLinearCrossEntropy(smoothing, z_loss, soft_cap, chunk)

    @tf.function
    def computed():
        with tf.GradientTape() as tape:
            tape.watch([hidden, head])
            total, nats = cross_entropy.loss_sums(hidden, head, targets, weights)
            doubled = 2.0 * total
        return total, nats, *tape.gradient(doubled, [hidden, head])

    return computed()


@pytest.mark.parametrize("chunk", [TOKENS, 8, 1], ids=["one chunk", "ragged chunks", "single tokens"])
@pytest.mark.parametrize(
    ("smoothing", "z_loss", "soft_cap"), [(0.0, 0.0, None), (0.1, 0.0, None), (0.0, 0.01, None), (0.2, 0.03, 2.5)]
)
def test_losses_and_gradients_equal_the_plain_computation(chunk, smoothing, z_loss, soft_cap):
    arguments = (*example(), smoothing, z_loss, soft_cap)
    total, nats, hidden_gradient, head_gradient = naive(*arguments)
    result = ours(*arguments, chunk)
    np.testing.assert_allclose(result[0], total, rtol=1e-6)
    np.testing.assert_allclose(result[1], nats, rtol=1e-6)
    # The upstream gradient is 2, and is passed on.
    np.testing.assert_allclose(result[2], 2 * hidden_gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result[3], 2 * head_gradient, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_float32_and_sums_the_head_gradient_in_float32():
    hidden, head, targets, weights = example()
    exact = ours(hidden, head, targets, weights, 0.0, 0.0, None, TOKENS)
    rough = ours(tf.cast(hidden, tf.bfloat16), head, targets, weights, 0.0, 0.0, None, 8)
    np.testing.assert_allclose(rough[0], exact[0], rtol=5e-3)
    assert rough[2].dtype == tf.bfloat16
    assert rough[3].dtype == tf.float32
    np.testing.assert_allclose(rough[3], exact[3], atol=0.02 * float(tf.reduce_max(tf.abs(exact[3]))))


def test_evaluation_per_token_equals_the_plain_computation_in_chunks_too():
    hidden, head, targets, _ = example()
    logits = tf.matmul(hidden, head, transpose_b=True)
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    guesses = np.argmax(logits, -1) == targets.numpy()
    for chunk in (TOKENS, 10):
        losses, nats, correct = FusedLinearCrossEntropy(0.0, 0.0, None, chunk).per_token(hidden, head, targets)
        np.testing.assert_allclose(nats, expected, rtol=1e-6)
        np.testing.assert_allclose(losses, nats)
        np.testing.assert_array_equal(correct, guesses.astype(np.float32))


def all_shapes(graph: tf.Graph) -> set[int]:
    """Elements of every tensor of a graph and of the functions in it."""
    sizes = {output.shape.num_elements() for op in graph.get_operations() for output in op.outputs if output.shape}
    for function in graph._functions.values():
        sizes |= all_shapes(function.graph)
    return {size for size in sizes if size is not None}


def test_logits_of_all_tokens_never_exist_at_once():
    hidden, head, targets, weights = example()

    def step(chunk):
        with tf.GradientTape() as tape:
            tape.watch([hidden, head])
            total, _ = FusedLinearCrossEntropy(0.1, 0.1, None, chunk).loss_sums(hidden, head, targets, weights)
        return tape.gradient(total, [hidden, head])

    whole = tf.function(lambda: step(TOKENS)).get_concrete_function()
    chunked = tf.function(lambda: step(8)).get_concrete_function()
    assert TOKENS * VOCABULARY in all_shapes(whole.graph)
    assert max(all_shapes(chunked.graph)) <= max(40 * WIDTH, VOCABULARY * WIDTH)
    assert 8 * VOCABULARY in all_shapes(chunked.graph)


def test_chunks_are_chosen_by_the_vocabulary():
    assert automatic_chunk_tokens(768, 65) == 768
    assert automatic_chunk_tokens(32768, 50257) * 50257 * 4 <= 64 << 20
    assert automatic_chunk_tokens(32768, 50257) % 128 == 0
