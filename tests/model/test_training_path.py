"""Dropout as a pure function of its seed, and rematerialization without a difference."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.model.options import GPT2, MODERN, OPTIONS, random_decoder, random_ids
from tfgpt.model.dropout import Dropout, dropout_seed

DROPPING = MODERN | {"dropout": 0.3}
TOKEN_IDS = tf.constant(random_ids(2, 12))


def loss_and_gradients(decoder, seed):
    with tf.GradientTape() as tape, dropout_seed(seed):
        loss = tf.reduce_mean(tf.square(decoder({"token_ids": TOKEN_IDS}, training=True)))
    gradients = tape.gradient(loss, [variable.value for variable in decoder.trainable_variables])
    return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]


def test_dropout_depends_on_the_seed_only():
    decoder, again = random_decoder(DROPPING), random_decoder(DROPPING)
    seed, other = tf.constant([3, 4]), tf.constant([3, 5])
    first, _ = loss_and_gradients(decoder, seed)
    assert loss_and_gradients(decoder, seed)[0] == first
    assert loss_and_gradients(again, seed)[0] == first
    assert loss_and_gradients(decoder, other)[0] != first
    graph = tf.function(lambda seed: loss_and_gradients(decoder, seed)[0])
    assert float(graph(seed)) == pytest.approx(float(first), rel=1e-5)
    assert float(graph(other)) != pytest.approx(float(first), rel=1e-3)
    compiled = tf.function(lambda seed: loss_and_gradients(decoder, seed)[0], jit_compile=True)
    assert float(compiled(seed)) == pytest.approx(float(first), rel=1e-5)
    assert not decoder.non_trainable_variables


def test_dropout_layers_of_one_model_drop_differently_at_the_stated_rate_and_keep_the_mean():
    ones = tf.ones([400, 500])
    with dropout_seed(tf.constant([1, 2])):
        first, second = (Dropout(0.3, number)(ones, training=True).numpy() for number in (0, 1))
        low = Dropout(0.1, 0)(tf.ones([400, 500], tf.bfloat16), training=True).numpy().astype(np.float32)
    assert (first == 0).mean() == pytest.approx(0.3, abs=0.005)
    assert first.mean() == pytest.approx(1.0, abs=0.01)
    assert ((first == 0) & (second == 0)).mean() == pytest.approx(0.09, abs=0.005)
    assert (low == 0).mean() == pytest.approx(0.1, abs=0.003)


def test_dropout_changes_nothing_outside_training():
    plain = random_decoder(MODERN)({"token_ids": TOKEN_IDS}).numpy()
    np.testing.assert_array_equal(random_decoder(DROPPING)({"token_ids": TOKEN_IDS}).numpy(), plain)


def test_training_with_dropout_without_a_seed_is_refused():
    with pytest.raises(RuntimeError, match="dropout_seed"):
        random_decoder(DROPPING)({"token_ids": TOKEN_IDS}, training=True)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["modern", "gpt2", "nanochat", "dropout"])
def test_rematerialization_gives_the_same_loss_and_gradients(name, dtype):
    seed = tf.constant([3, 4])
    kept = loss_and_gradients(random_decoder(OPTIONS[name], dtype=dtype), seed)
    decoder = random_decoder(OPTIONS[name] | {"rematerialize": True}, dtype=dtype)
    recomputed = loss_and_gradients(decoder, seed)
    assert recomputed[0] == kept[0]
    for variable, mine, theirs in zip(decoder.trainable_variables, recomputed[1], kept[1], strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=variable.path)


@pytest.mark.parametrize("compiled", [False, True])
def test_rematerialization_holds_in_a_traced_loop_over_micro_batches(compiled):
    def accumulated(decoder):
        def body(number, total, gradients):
            loss, more = loss_and_gradients(decoder, tf.stack([7, number]))
            return number + 1, total + loss, [kept + new for kept, new in zip(gradients, more, strict=True)]

        zeros = [tf.zeros(variable.shape) for variable in decoder.trainable_variables]
        return tf.while_loop(lambda number, *_: number < 2, body, (0, 0.0, zeros), maximum_iterations=2)[1:]

    decoders = [random_decoder(DROPPING | {"num_layers": 1, "rematerialize": on}) for on in (False, True)]
    kept, recomputed = (tf.function(accumulated, jit_compile=compiled)(decoder) for decoder in decoders)
    np.testing.assert_allclose(recomputed[0], kept[0], rtol=1e-6)
    for mine, theirs in zip(recomputed[1], kept[1], strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-6 + 1e-5 * np.abs(theirs).max())


def test_xla_really_runs_the_blocks_again_where_they_are_rematerialized():
    def products(decoder):
        step = tf.function(lambda: loss_and_gradients(decoder, None), jit_compile=True)
        program = step.experimental_get_compiler_ir()(stage="optimized_hlo")
        return len(re.findall(r" dot\(|matmul", program))

    kept, recomputed = (
        products(random_decoder(MODERN | {"num_layers": 1, "rematerialize": on})) for on in (False, True)
    )
    # Attention's three projections, its scores and their mixture, the output's and the MLP's but the last.
    assert recomputed >= kept + 6


@pytest.mark.parametrize("values", [MODERN, GPT2 | {"rematerialize": True}], ids=["kept", "rematerialized"])
def test_every_variable_gets_a_finite_gradient_that_is_not_zero(values):
    decoder = random_decoder(values)
    _, gradients = loss_and_gradients(decoder, None)
    for variable, gradient in zip(decoder.trainable_variables, gradients, strict=True):
        assert np.isfinite(gradient.numpy()).all(), variable.path
        if not variable.path.endswith("key/bias"):  # A shift of all scores of a row changes no softmax.
            assert np.abs(gradient.numpy()).max() > 0, variable.path
