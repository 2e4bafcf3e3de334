"""Maximal update parametrization: what it changes, and that folding its factors into weights changes nothing else."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.common.errors import SettingError
from tfgpt.model.checkpoints.huggingface import load_config, save_decoder
from tfgpt.model.checkpoints.huggingface_config import transformers_model_type
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.model.maximal_update import ParametrizationConfig, learning_rate_factor, with_initial_weights
from tfgpt.training.config import OptimizerConfig
from tfgpt.training.optimizers import build_optimizer

WIDE = {"vocabulary_size": 13, "num_layers": 1, "hidden_dim": 32, "num_query_heads": 2, "max_sequence_length": 8}
FOUR_TIMES = ParametrizationConfig(parametrization="maximal_update", base_hidden_dim=8, base_head_dim=4)
IDS = np.random.default_rng(0).integers(0, 13, (3, 7), np.int32)


def test_nothing_changes_at_the_base_width_and_without():
    config = DecoderConfig(**WIDE)
    base = ParametrizationConfig(parametrization="maximal_update", base_hidden_dim=32)
    for parametrization in (base, ParametrizationConfig()):
        assert with_initial_weights(config, parametrization) == config
        for variable in Decoder(config).trainable_variables:
            assert learning_rate_factor(variable.path, config, parametrization, "adamw") == 1.0


@pytest.mark.parametrize(("tied", "optimizer"), [(True, "adamw"), (False, "lion"), (False, "muon")])
def test_factors_are_those_of_the_papers_table_at_four_times_the_width(tied, optimizer):
    config = DecoderConfig(**WIDE, tie_embeddings=tied, use_bias=True, initializer_range=0.1)
    wide = with_initial_weights(config, FOUR_TIMES)
    # Table 8 of arXiv:2203.03466 for a tied head, table 3 for one of its own; heads of 16 against 4.
    assert wide.initializer_range == pytest.approx(0.1 / 2)
    assert wide.embedding_initializer_range == 0.1
    assert wide.head_initializer_range == pytest.approx(0.1 if tied else 0.1 / 4)
    assert wide.final_norm_initial_scale == pytest.approx(1 / 4 if tied else 1.0)
    assert wide.query_initializer_factor == pytest.approx(1 / 2)
    hidden = 1 / 2 if optimizer == "muon" else 1 / 4
    expected = {"attention/query_norm/scale": 1 / 2}
    expected |= {f"attention/{name}/kernel": hidden for name in ("query", "key", "value", "output")}
    expected |= {f"mlp/{name}/kernel": hidden for name in ("gate", "up", "down")}
    expected = {f"decoder/block_0/{name}": factor for name, factor in expected.items()}
    expected["decoder/final_norm/scale" if tied else "decoder/head/kernel"] = 1 / 4
    for variable in Decoder(wide).trainable_variables:
        factor = learning_rate_factor(variable.path, wide, FOUR_TIMES, optimizer)
        assert factor == pytest.approx(expected.pop(variable.path, 1.0)), variable.path
    assert not expected


def after_updates(config: DecoderConfig, factors: dict[str, float], multiplier: float) -> np.ndarray:
    """Logits, times `multiplier`, after three AdamW updates; `factors` on learning rates, by a part of the path."""
    keras.utils.set_random_seed(3)
    decoder = Decoder(config)
    optimizer = build_optimizer(OptimizerConfig(epsilon=1e-30, weight_decay=0.5), 0.02, decoder)
    variables = decoder.trainable_variables
    for variable in variables:
        found = [factor for part, factor in factors.items() if part in variable.path]
        optimizer.learning_rate_factors = {**optimizer.learning_rate_factors, variable.path: float(np.prod(found))}

    @tf.function
    def update() -> None:
        with tf.GradientTape() as tape:
            logits = multiplier * decoder({"token_ids": IDS[:, :-1]})
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(IDS[:, 1:], logits))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        new, slots = optimizer.stateless_apply(
            [slot.value for slot in optimizer.variables],
            [tf.convert_to_tensor(gradient) for gradient in gradients],
            [variable.value for variable in variables],
        )
        for variable, value in zip([*variables, *optimizer.variables], [*new, *slots], strict=True):
            variable.assign(value)

    for _ in range(3):
        update()
    return multiplier * decoder({"token_ids": IDS}).numpy()


@pytest.mark.parametrize("query_key_norm", [True, False])
def test_factors_folded_into_weights_train_as_factors_on_activations(query_key_norm):
    config = DecoderConfig(**WIDE, query_key_norm=query_key_norm, initializer_range=0.3)
    folded = with_initial_weights(config, FOUR_TIMES)
    paths = [variable.path for variable in Decoder(folded).trainable_variables]
    factors = {path: learning_rate_factor(path, folded, FOUR_TIMES, "adamw") for path in paths}
    # As the table has it: logits times 1/m, queries times keys times sqrt(base_head_dim) / head_dim, kernels 1/m.
    explicit = dataclasses.replace(config, attention_scale=4**0.5 / 16, initializer_range=0.15)
    theirs = after_updates(explicit, {"/kernel": 0.25}, 0.25)
    assert np.abs(theirs).max() > 0.05
    np.testing.assert_allclose(after_updates(folded, factors, 1.0), theirs, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(("options", "model_type"), [({}, "qwen3"), ({"query_key_norm": False}, "llama")])
def test_what_was_trained_is_still_a_model_that_transformers_opens(options, model_type, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    config = with_initial_weights(DecoderConfig(**WIDE, **options), FOUR_TIMES)
    assert transformers_model_type(config) == (model_type, "")
    decoder = Decoder(config)
    save_decoder(decoder, tmp_path)
    assert load_config(tmp_path) == config
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(IDS.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(decoder({"token_ids": IDS}).numpy(), theirs, atol=1e-5)


def test_a_factor_without_a_scale_to_hold_it_is_refused_by_name():
    config = DecoderConfig(**WIDE, normalization_scale=False)
    with pytest.raises(SettingError, match="^--parametrization: .*--normalization_scale=true"):
        with_initial_weights(config, FOUR_TIMES)
    with pytest.raises(SettingError, match="^--base_head_dim: .*--normalization_scale=true"):
        with_initial_weights(dataclasses.replace(config, tie_embeddings=False), FOUR_TIMES)
