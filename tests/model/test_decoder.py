"""What the decoder promises of every option: causality, packing, caching, static and unknown lengths."""

import numpy as np
import pytest
import tensorflow as tf

from tests.model.options import GPT2, MODERN, OPTIONS, random_decoder, random_ids
from tfgpt.common.errors import UserError

EVERY_OPTION = pytest.mark.parametrize("name", OPTIONS)
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@EVERY_OPTION
def test_a_changed_token_changes_no_earlier_logit_and_its_own(name):
    decoder = random_decoder(OPTIONS[name])
    token_ids = random_ids(1, 12)
    changed = token_ids.copy()
    changed[0, 7] = (changed[0, 7] + 1) % 61
    before, after = (decoder({"token_ids": ids}).numpy() for ids in (token_ids, changed))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7] - after[:, 7]).max() > 1e-3


@EVERY_OPTION
def test_cached_forward_equals_uncached_for_left_padded_rows_of_different_length(name):
    decoder = random_decoder(OPTIONS[name])
    prompts = [random_ids(1, length, seed=length)[0] for length in (11, 8, 3)]
    new_tokens, slots = random_ids(3, 4, seed=9), 16
    padding = np.array([11 - len(prompt) for prompt in prompts], np.int32)[:, None]
    rows = np.stack([np.concatenate([np.zeros(11 - len(prompt), np.int32), prompt]) for prompt in prompts])
    valid = np.arange(slots) >= padding

    def one_token(token_ids, index):
        positions = tf.constant(index - padding)
        return decoder.call_with_cache(tf.constant(token_ids), positions, state["cache"], index, tf.constant(valid))

    state = {"cache": decoder.empty_cache(3, slots)}
    hidden, state["cache"] = decoder.call_with_cache(
        rows, np.arange(11) - padding, state["cache"], tf.constant(0), tf.constant(valid)
    )
    assert np.isfinite(hidden.numpy()).all()
    pieces = [hidden]
    for place in range(4):
        hidden, state["cache"] = one_token(new_tokens[:, place : place + 1], tf.constant(11 + place))
        pieces.append(hidden)
    cached = decoder.logits(tf.concat(pieces, 1)).numpy()
    for row, prompt in enumerate(prompts):
        whole = np.concatenate([prompt, new_tokens[row]])[None]
        uncached = decoder({"token_ids": whole}).numpy()[0]
        np.testing.assert_allclose(cached[row, padding[row, 0] :], uncached, **CLOSE)


@pytest.mark.parametrize("name", ["modern", "gpt2", "sliding_window"])
def test_a_prompt_cached_in_pieces_equals_one_cached_at_once(name):
    decoder = random_decoder(OPTIONS[name])
    token_ids, slots = random_ids(2, 12), 14
    valid = tf.ones([2, slots], tf.bool)

    @tf.function(reduce_retracing=True)
    def forward(token_ids, cache, index):
        positions = index + tf.range(tf.shape(token_ids)[1])[None] + tf.zeros([2, 1], tf.int32)
        return decoder.call_with_cache(token_ids, positions, cache, index, valid)

    cache, pieces = decoder.empty_cache(2, slots), []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        hidden, cache = forward(tf.constant(token_ids[:, start:end]), cache, tf.constant(start))
        pieces.append(hidden)
    expected = decoder.backbone({"token_ids": token_ids}).numpy()
    np.testing.assert_allclose(tf.concat(pieces, 1).numpy(), expected, **CLOSE)


@EVERY_OPTION
def test_packed_rows_equal_separate_documents(name):
    decoder = random_decoder(OPTIONS[name], packed=True)
    documents = [random_ids(1, length, seed=length)[0] for length in (5, 9, 2)]
    row = {
        "token_ids": np.concatenate(documents)[None],
        "positions": np.concatenate([np.arange(len(document)) for document in documents])[None],
        "segment_ids": np.repeat([3, 1, 3 + 1], [len(document) for document in documents])[None],
    }
    packed = decoder({key: value.astype(np.int32) for key, value in row.items()}).numpy()[0]
    alone = random_decoder(OPTIONS[name])
    expected = np.concatenate([alone({"token_ids": document[None]}).numpy()[0] for document in documents])
    np.testing.assert_allclose(packed, expected, **CLOSE)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["modern", "gpt2", "sliding_window", "multi_query"])
def test_long_rows_taken_in_pieces_equal_the_plain_attention(name, packed):
    # 128 tokens are taken in two pieces where the length is known, and in one where it is not.
    decoder = random_decoder(
        OPTIONS[name] | ({"sliding_window": 50} if name == "sliding_window" else {}), packed=packed
    )
    inputs = {"token_ids": random_ids(2, 128)}
    if packed:
        inputs["segment_ids"] = np.repeat([[0, 1]], [40, 88], 1).repeat(2, 0).astype(np.int32)
        inputs["positions"] = np.concatenate([np.arange(40), np.arange(88)])[None].repeat(2, 0).astype(np.int32)
    weights = tf.constant(np.random.default_rng(2).normal(size=(2, 128, 61)), tf.float32)

    def loss_and_gradients(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(decoder(inputs, training=True) * weights)
        return loss, tape.gradient(loss, [variable.value for variable in decoder.trainable_variables])

    unknown = {key: tf.TensorSpec([None, None], tf.int32) for key in inputs}
    expected = tf.function(loss_and_gradients, input_signature=[unknown])(inputs)
    pieces = tf.function(loss_and_gradients)({key: tf.constant(value) for key, value in inputs.items()})
    np.testing.assert_allclose(pieces[0], expected[0], rtol=1e-4)
    for variable, mine, theirs in zip(decoder.trainable_variables, pieces[1], expected[1], strict=True):
        mine, theirs = tf.convert_to_tensor(mine).numpy(), tf.convert_to_tensor(theirs).numpy()
        assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max() + 1e-4, variable.path


@pytest.mark.parametrize("name", ["modern", "gpt2", "multi_query"])
def test_attentions_own_gradient_is_the_numerical_one(name):
    decoder = random_decoder(OPTIONS[name] | {"num_layers": 1}, dtype="float64")
    token_ids = random_ids(1, 128)
    kernels = [decoder.blocks[0].attention.query.kernel, decoder.blocks[0].attention.key.kernel]
    kernels.append(decoder.blocks[0].attention.value.kernel)

    def loss():
        return tf.reduce_mean(tf.square(decoder.backbone({"token_ids": token_ids})[:, ::3]))

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [kernel.value for kernel in kernels])
    for kernel, gradient in zip(kernels, gradients, strict=True):
        direction = np.random.default_rng(3).normal(size=kernel.shape)
        origin, step = kernel.numpy(), 1e-3
        kernel.assign(origin + step * direction)
        above = float(loss())
        kernel.assign(origin - step * direction)
        below = float(loss())
        kernel.assign(origin)
        # The attention's softmax and the tables of RoPE are float32 in any dtype.
        assert float(tf.reduce_sum(gradient * direction)) == pytest.approx((above - below) / (2 * step), rel=2e-3)


@pytest.mark.parametrize("name", ["modern", "gpt2", "nanochat", "sliding_window"])
def test_the_traced_model_gives_equal_logits_for_unknown_and_known_shapes(name):
    decoder = random_decoder(OPTIONS[name])
    token_ids = random_ids(2, 10)
    expected = decoder({"token_ids": token_ids}).numpy()
    assert expected.dtype == np.float32
    for shape in ([None, None], [None, 10], [2, None]):
        signature = [{"token_ids": tf.TensorSpec(shape, tf.int32)}]
        logits = tf.function(decoder, input_signature=signature)({"token_ids": token_ids})
        np.testing.assert_allclose(logits.numpy(), expected, **CLOSE)
    compiled = tf.function(decoder, jit_compile=True)({"token_ids": tf.constant(token_ids)})
    np.testing.assert_allclose(compiled.numpy(), expected, atol=1e-4, rtol=1e-4)


def test_backbone_and_logits_make_up_the_model():
    for name in ("soft_cap", "untied", "gpt2"):
        decoder = random_decoder(OPTIONS[name])
        token_ids = random_ids(2, 6)
        hidden = decoder.backbone({"token_ids": token_ids})
        assert hidden.shape == (2, 6, 32)
        logits = decoder({"token_ids": token_ids}).numpy()
        np.testing.assert_allclose(decoder.logits(hidden).numpy(), logits, **CLOSE)
        np.testing.assert_allclose(decoder.logits(hidden[:, -1]).numpy(), logits[:, -1], **CLOSE)
        uncapped = hidden.numpy() @ decoder.output_weights().numpy().T
        if name == "soft_cap":
            uncapped = 2.0 * np.tanh(uncapped / 2.0)
            assert np.abs(uncapped).max() < 2.0
        np.testing.assert_allclose(uncapped, logits, **CLOSE)


@pytest.mark.parametrize("values", [MODERN, GPT2], ids=["rope", "learned"])
def test_an_input_longer_than_max_sequence_length_is_refused_by_name(values):
    decoder = random_decoder(values | {"max_sequence_length": 8})
    decoder({"token_ids": random_ids(1, 8)})
    with pytest.raises(UserError, match="max_sequence_length: 8 is shorter than the input of 9 tokens"):
        decoder({"token_ids": random_ids(1, 9)})
    unknown = tf.function(decoder, input_signature=[{"token_ids": tf.TensorSpec([None, None], tf.int32)}])
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_sequence_length=8"):
        unknown({"token_ids": random_ids(1, 9)})


def test_a_sliding_window_sees_the_newest_tokens_only():
    decoder = random_decoder(MODERN | {"num_layers": 1, "sliding_window": 3})
    token_ids = random_ids(1, 10)
    changed = token_ids.copy()
    changed[0, 4] = (changed[0, 4] + 1) % 61
    before, after = (decoder({"token_ids": ids}).numpy()[0] for ids in (token_ids, changed))
    differs = np.abs(before - after).max(-1) > 1e-6
    np.testing.assert_array_equal(differs, [position in (4, 5, 6) for position in range(10)])


def test_mixed_bfloat16_stays_within_three_hundredths_of_the_logits_spread():
    for name in ("modern", "gpt2", "nanochat"):
        exact = random_decoder(OPTIONS[name])
        mixed = random_decoder(OPTIONS[name], dtype="mixed_bfloat16")
        token_ids = random_ids(2, 24)
        expected = exact({"token_ids": token_ids}).numpy()
        logits = mixed({"token_ids": token_ids})
        assert logits.dtype == tf.float32
        assert mixed.backbone({"token_ids": token_ids}).dtype == tf.bfloat16
        assert all(variable.dtype == "float32" for variable in mixed.variables)
        difference = np.sqrt(np.mean((logits.numpy() - expected) ** 2)) / expected.std()
        assert 1e-5 < difference < 0.03, name
