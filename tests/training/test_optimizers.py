"""Optimizers: the pure updates are Keras's own, and weight decay and Muon reach the variables they should."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.common.errors import SettingError
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.train import COMMAND
from tfgpt.training.config import OptimizerConfig
from tfgpt.training.optimizers import build_optimizer, is_decayed
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer


def small_decoder(**changes) -> Decoder:
    keras.utils.set_random_seed(0)
    shape = {"vocabulary_size": 11, "num_layers": 1, "hidden_dim": 8, "num_query_heads": 2, "max_sequence_length": 6}
    return Decoder(DecoderConfig(**{**shape, **changes}))


def gradients_of(variables, step: int) -> list[np.ndarray]:
    generator = np.random.default_rng(step)
    return [generator.normal(size=variable.shape).astype(np.float32) for variable in variables]


def kerass_own(config: OptimizerConfig) -> keras.optimizers.Optimizer:
    common = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    betas = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(**common, **betas, epsilon=config.epsilon)
    if config.optimizer == "lion":
        return keras.optimizers.Lion(**common, **betas)
    if config.optimizer == "adafactor":
        return keras.optimizers.Adafactor(**common, relative_step=False)
    return keras.optimizers.Muon(
        **common,
        adam_weight_decay=config.weight_decay,
        adam_beta_1=config.beta_1,
        adam_beta_2=config.beta_2,
        adam_lr_ratio=0.5,
        epsilon=config.epsilon,
        momentum=config.momentum,
        exclude_layers=["head"],
    )


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor"])
def test_pure_updates_equal_kerass_own_optimizer_and_assign_nothing(name):
    config = OptimizerConfig(
        optimizer=name,
        learning_rate=0.02,
        adam_learning_rate=0.01 if name == "muon" else None,
        beta_1=0.7,  # none of Keras's defaults
        beta_2=0.8,
        epsilon=1e-3,
        momentum=0.6,
        weight_decay=0.3,
        weight_decay_exclude=("embedding",),
    )
    decoder, reference = small_decoder(tie_embeddings=False), small_decoder(tie_embeddings=False)
    ours, theirs = build_optimizer(config, config.learning_rate, decoder), kerass_own(config)
    theirs.exclude_from_weight_decay(
        var_list=[v for v in reference.trainable_variables if len(v.shape) < 2 or "embedding" in v.path]
    )
    theirs.build(reference.trainable_variables)
    for step in range(3):
        gradients = gradients_of(decoder.trainable_variables, step)
        variables = [*decoder.trainable_variables, *ours.variables]
        before = [variable.numpy().copy() for variable in variables]
        values, slots = ours.stateless_apply(
            [variable.value for variable in ours.variables],
            [tf.constant(gradient) for gradient in gradients],
            [variable.value for variable in decoder.trainable_variables],
        )
        for variable, old, value in zip(variables, before, [*values, *slots], strict=True):
            np.testing.assert_array_equal(variable.numpy(), old)
            variable.assign(value)
        theirs.apply([tf.constant(gradient) for gradient in gradients], reference.trainable_variables)
    for mine, other in zip(decoder.trainable_variables, reference.trainable_variables, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-5, atol=1e-6, err_msg=mine.path)


def test_biases_norms_and_embeddings_are_not_decayed_and_a_pattern_changes_that():
    decoder = small_decoder(use_bias=True, position_embedding="learned", normalization="layer_norm")
    names = {v.path for v in decoder.trainable_variables if is_decayed(v, OptimizerConfig())}
    assert names == {f"decoder/block_0/attention/{part}/kernel" for part in ("query", "key", "value", "output")} | {
        path for path in names if path.startswith("decoder/block_0/mlp/") and path.endswith("kernel")
    }
    as_nanogpt = OptimizerConfig(weight_decay_exclude=("^$",))
    for variable in decoder.trainable_variables:
        assert is_decayed(variable, as_nanogpt) == (len(variable.shape) == 2)


def test_muon_takes_the_blocks_matrices_and_nothing_else():
    decoder = small_decoder(tie_embeddings=False, position_embedding="learned")
    optimizer = build_optimizer(OptimizerConfig(optimizer="muon"), 0.1, decoder)
    muons = {
        variable.path
        for variable, velocity in zip(decoder.trainable_variables, optimizer.adam_velocities, strict=True)
        if velocity is None
    }
    matrices = {v.path for v in decoder.trainable_variables if "/block_" in v.path and len(v.shape) == 2}
    assert muons == matrices
    assert muons


def test_learning_rate_scale_multiplies_the_schedule():
    decoder = small_decoder()
    schedule = keras.optimizers.schedules.PolynomialDecay(0.4, 10, 0.0)
    optimizer = build_optimizer(OptimizerConfig(), schedule, decoder)
    optimizer.iterations.assign(5)
    assert float(optimizer.learning_rate) == pytest.approx(0.2)
    optimizer.learning_rate_scale.assign(0.25)
    assert float(optimizer.learning_rate) == pytest.approx(0.05)


def test_newton_schulz_in_bfloat16_keeps_singular_values_near_one():
    decoder = small_decoder()
    matrix = np.random.default_rng(0).normal(size=(48, 96)).astype(np.float32)
    for mixed in (False, True):
        optimizer = build_optimizer(OptimizerConfig(optimizer="muon"), 0.1, decoder, mixed=mixed)
        result = optimizer.zeropower_via_newtonschulz5(tf.constant(matrix), 5)
        assert result.dtype == tf.float32
        values = np.linalg.svd(result.numpy(), compute_uv=False)
        # Muon's write-up: its coefficients bring singular values to about [0.7, 1.2].
        assert values.min() > 0.6
        assert values.max() < 1.3


@pytest.mark.parametrize(("dtype", "products"), [("float32", tf.float32), ("mixed_bfloat16", tf.bfloat16)])
def test_a_run_in_bfloat16_computes_muons_products_in_bfloat16(dtype, products):
    flags = "--train_text=none --preset=tiny --num_layers=1 --hidden_dim=16 --num_query_heads=2 --head_dim=8 "
    flags += f"--num_key_value_heads=1 --intermediate_dim=32 --sequence_length=16 --optimizer=muon --dtype={dtype}"
    optimizer = build_trainer(TrainConfig(**COMMAND.parse(flags.split())), vocabulary_size=300).optimizer
    graph = tf.function(lambda matrix: optimizer.zeropower_via_newtonschulz5(matrix, 5))
    operations = graph.get_concrete_function(tf.TensorSpec([8, 16])).graph.get_operations()
    assert {one.outputs[0].dtype for one in operations if "MatMul" in one.type} == {products}


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"adam_learning_rate": 0.1}, "adam_learning_rate"),
        ({"beta_2": 1.0}, "beta_2"),
        ({"weight_decay_exclude": ("(",)}, "weight_decay_exclude"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, word):
    with pytest.raises(SettingError, match=f"^--{word}: "):
        OptimizerConfig(**settings)
