"""Layers: configs round-trip, formulas against other libraries, names, initial values."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from tests.model.layer_checks import run_layer_test
from tests.model.options import GPT2, MODERN, ONE_BLOCK, OPTIONS, random_decoder, random_ids
from tfgpt.model.attention import SelfAttention
from tfgpt.model.attention_mask import AttentionMask, causal_mask
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder, TransformerBlock
from tfgpt.model.dropout import Dropout
from tfgpt.model.layers import MLP, Embedding, Normalization, OutputHead, SoftCap, gelu
from tfgpt.model.position_embeddings import PositionEmbedding, RotaryEmbedding, rotate, rotation_tables
from tfgpt.model.projection import Projection

INPUTS = np.random.default_rng(0).normal(2.0, 3.0, (3, 5, 16)).astype(np.float32)
IDS = np.array([[0, 0, 1, 1, 2]], np.int32)


CONFIG = DecoderConfig.from_dict(ONE_BLOCK | {"hidden_dim": 16, "use_bias": True})
NO_MASK = np.zeros([5, 5], np.float32)
ROTATION = RotaryEmbedding(CONFIG).at(np.arange(5)[None])
LAYERS = {
    "layer norm": (lambda **options: Normalization("layer_norm", use_bias=True, initial_scale=0.5, **options), INPUTS),
    "rms norm": (lambda **options: Normalization(epsilon=1e-3, **options), INPUTS),
    "projection": (lambda **options: Projection(7, True, None, 0.5, **options), INPUTS),
    "embedding": (lambda **options: Embedding(9, 4, 0.3, **options), IDS),
    "output head": (lambda **options: OutputHead(9, 0.3, **options), INPUTS),
    "soft cap": (lambda **options: SoftCap(2.0, **options), INPUTS),
    "dropout": (lambda **options: Dropout(0.2, 3, **options), INPUTS),
    "mlp": (lambda **options: MLP(CONFIG, **options), INPUTS),
    "positions": (lambda **options: PositionEmbedding(9, 4, packed=True, **options), IDS),
    "rotation": (lambda **options: RotaryEmbedding(CONFIG, packed=True, **options), IDS),
    "mask": (lambda **options: AttentionMask(CONFIG, packed=True, **options), IDS),
    "attention": (lambda **options: SelfAttention(CONFIG, dropout_number=2, **options), INPUTS, ROTATION, NO_MASK),
    "block": (lambda **options: TransformerBlock(CONFIG, number=1, **options), INPUTS, NO_MASK, ROTATION),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_serialize_and_compute_in_mixed_precision(name):
    run_layer_test(*LAYERS[name])


def test_the_decoder_round_trips_its_config_and_a_keras_file(tmp_path):
    decoder = random_decoder(OPTIONS["modern"], dtype="mixed_bfloat16")
    again = Decoder.from_config(decoder.get_config())
    assert again.get_config() == decoder.get_config()
    assert [v.path for v in again.variables] == [v.path for v in decoder.variables]
    decoder.save(tmp_path / "decoder.keras")
    loaded = keras.models.load_model(tmp_path / "decoder.keras")
    token_ids = random_ids(1, 6)
    np.testing.assert_array_equal(loaded({"token_ids": token_ids}).numpy(), decoder({"token_ids": token_ids}).numpy())


def test_variables_have_stable_readable_paths():
    paths = {variable.path: tuple(variable.shape) for variable in Decoder(DecoderConfig.from_dict(MODERN)).variables}
    assert len(paths) == 2 + 2 * 11
    assert paths["decoder/token_embedding/embeddings"] == (61, 32)
    assert paths["decoder/block_0/attention/query/kernel"] == (32, 32)
    assert paths["decoder/block_1/attention/key/kernel"] == (32, 16)
    assert paths["decoder/block_1/attention/query_norm/scale"] == (8,)
    assert paths["decoder/block_0/mlp/gate/kernel"] == (32, 128)
    assert paths["decoder/final_norm/scale"] == (32,)
    untied = Decoder(DecoderConfig.from_dict(GPT2 | {"tie_embeddings": False}), name="other")
    paths = {variable.path for variable in untied.variables}
    assert {"other/head/kernel", "other/position_embedding/embeddings", "other/block_0/mlp/up/bias"} <= paths


def test_layer_norm_is_torchs():
    layer = Normalization("layer_norm", epsilon=1e-5, use_bias=True)
    layer.build((None, 16))
    scale, bias = np.linspace(0.5, 2, 16, dtype=np.float32), np.linspace(-1, 1, 16, dtype=np.float32)
    layer.scale.assign(scale)
    layer.bias.assign(bias)
    theirs = torch.tensor(INPUTS, requires_grad=True)
    expected = torch.nn.functional.layer_norm(theirs, (16,), torch.tensor(scale), torch.tensor(bias), 1e-5)
    check_value_and_gradient(layer, theirs, expected)


def test_rms_norm_is_torchs():
    layer = Normalization("rms_norm", epsilon=1e-6, use_scale=False)
    theirs = torch.tensor(INPUTS, requires_grad=True)
    check_value_and_gradient(layer, theirs, torch.nn.functional.rms_norm(theirs, (16,), eps=1e-6))


def test_gelu_is_torchs_tanh_form():
    theirs = torch.tensor(INPUTS, requires_grad=True)
    check_value_and_gradient(gelu, theirs, torch.nn.functional.gelu(theirs, approximate="tanh"))


def check_value_and_gradient(ours, theirs: torch.Tensor, expected: torch.Tensor) -> None:
    weights = np.random.default_rng(1).normal(size=INPUTS.shape).astype(np.float32)
    inputs = tf.constant(INPUTS)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = ours(inputs)
        total = tf.reduce_sum(output * weights)
    (expected * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(output.numpy(), expected.detach().numpy(), atol=2e-6, rtol=2e-5)
    np.testing.assert_allclose(tape.gradient(total, inputs).numpy(), theirs.grad.numpy(), atol=2e-5, rtol=2e-4)


def test_rotary_products_depend_on_the_distance_only():
    inverse = DecoderConfig(head_dim=8, rope_max_wavelength=100.0).inverse_frequencies()
    query, key = (np.random.default_rng(seed).normal(size=(1, 1, 1, 8)).astype(np.float32) for seed in (0, 1))

    def product(query_position: int, key_position: int) -> float:
        turned = [
            rotate(tf.constant(vector), rotation_tables(np.array([[position]]), inverse))
            for vector, position in ((query, query_position), (key, key_position))
        ]
        return float(tf.reduce_sum(turned[0] * turned[1]))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3


def test_rotation_tables_of_an_array_and_of_a_tensor_are_equal():
    positions, inverse = np.array([[0, 1, 5, 100]], np.int32), DecoderConfig(head_dim=8).inverse_frequencies()
    for mine, theirs in zip(
        rotation_tables(positions, inverse, 0.7), rotation_tables(tf.constant(positions), inverse, 0.7), strict=True
    ):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)


def test_the_mask_lets_through_the_window_and_nothing_later():
    seen = causal_mask(4, 2)[0, 0, 0] == 0
    np.testing.assert_array_equal(seen, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(causal_mask(4, None)[0, 0, 0] == 0, np.tril(np.ones((4, 4))))
    np.testing.assert_array_equal(causal_mask(tf.constant(4), 2).numpy(), causal_mask(4, 2))


def test_initial_values_have_the_configured_spread():
    keras.utils.set_random_seed(0)
    config = {"hidden_dim": 256, "num_query_heads": 4, "num_layers": 2, "vocabulary_size": 500, "mlp": "squared_relu"}
    options = {"initializer_range": None, "embedding_initializer_range": 1.0, "head_initializer_range": 0.001}
    options |= {"tie_embeddings": False, "zero_initialized_outputs": True}
    decoder = Decoder(DecoderConfig.from_dict(config | options))
    spread = {variable.path.split("/", 1)[1]: variable.numpy().std() for variable in decoder.variables}
    assert spread["token_embedding/embeddings"] == pytest.approx(1.0, rel=0.02)
    assert spread["head/kernel"] == pytest.approx(0.001, rel=0.02)
    assert spread["block_0/attention/query/kernel"] == pytest.approx(1 / 16, rel=0.02)
    assert spread["block_1/attention/output/kernel"] == spread["block_1/mlp/down/kernel"] == 0
    gpt2 = Decoder(DecoderConfig.from_dict(config))
    spread = {variable.path.split("/", 1)[1]: variable.numpy().std() for variable in gpt2.variables}
    # GPT-2 (section 2.3): output projections scaled by 1 / sqrt(residual layers), of which there are two a block.
    assert spread["block_0/mlp/down/kernel"] == pytest.approx(0.02 / 2, rel=0.02)
    assert spread["block_0/mlp/up/kernel"] == pytest.approx(0.02, rel=0.02)


def test_the_seed_of_keras_decides_the_initial_weights():
    def weights(seed: int) -> np.ndarray:
        keras.utils.set_random_seed(seed)
        return Decoder(DecoderConfig.from_dict(MODERN)).blocks[1].mlp.up.kernel.numpy()

    np.testing.assert_array_equal(weights(1), weights(1))
    assert np.abs(weights(1) - weights(2)).max() > 0
