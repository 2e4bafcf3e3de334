"""A small trainer and its batches, for the tests of the step."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

from tests.model.options import ONE_BLOCK, random_decoder
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.tokenization.train_tokenizer import byte_tokenizer
from tfgpt.training.config import OptimizerConfig, ScheduleConfig, StepConfig
from tfgpt.training.losses import CausalLanguageModelingLoss
from tfgpt.training.optimizers import build_optimizer
from tfgpt.training.schedules import build_schedule
from tfgpt.training.trainer import Trainer

VOCABULARY, LENGTH, ROWS = 67, 12, 8


def make_trainer(
    model: dict | None = None,
    optimizer: dict | None = None,
    step: dict | None = None,
    objective: dict | None = None,
    packed: bool = False,
) -> Trainer:
    """A trainer of a decoder of one block (few variables trace and compile soon); the dictionaries change settings."""
    keras.utils.set_random_seed(3)
    shape = {"vocabulary_size": VOCABULARY, "num_layers": 1, "hidden_dim": 16, "num_query_heads": 2, "mlp": "gelu"}
    shape |= {"max_sequence_length": LENGTH, "query_key_norm": False, **(model or {})}
    decoder = Decoder(DecoderConfig(**shape), packed=packed)
    optimizer_config = OptimizerConfig(**{"learning_rate": 1e-2, **(optimizer or {})})
    step_config = StepConfig(**{"compile": "graph", **(step or {})})
    trainer = Trainer(
        decoder,
        CausalLanguageModelingLoss(**(objective or {})),
        step_config,
        optimizer_config,
        seed=5,
        token_byte_lengths=byte_lengths(),
        batch_shape=(ROWS, LENGTH),
    )
    schedule = build_schedule(ScheduleConfig(warmup_steps=2), optimizer_config.learning_rate, 100)
    trainer.compile(build_optimizer(optimizer_config, schedule, decoder))
    return trainer


def byte_lengths() -> np.ndarray:
    """Bytes of each token: 0 for the first three (special), then 1 to 4."""
    return np.where(np.arange(VOCABULARY) < 3, 0, 1 + np.arange(VOCABULARY) % 4).astype(np.int32)


def batches(count: int, seed: int = 0, ragged: bool = True) -> list[dict[str, np.ndarray]]:
    """`count` random batches; ragged rows end in weights of 0."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCABULARY, (count, ROWS, LENGTH + 1)).astype(np.int32)
    lengths = generator.integers(1, LENGTH + 1, (count, ROWS, 1)) if ragged else np.full((count, ROWS, 1), LENGTH)
    weights = (np.arange(LENGTH) < lengths).astype(np.float32)
    return [
        {"token_ids": row[:, :-1], "targets": row[:, 1:], "weights": w} for row, w in zip(ids, weights, strict=True)
    ]


def dataset(rows: list[dict[str, np.ndarray]]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def state(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: np.array(variable.numpy()) for name, variable in trainer.state_variables().items()}


def assert_states_close(one: dict, other: dict, tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=tolerance, err_msg=name)


def save_byte_model(directory: Path, scale: float) -> Path:
    """A random model of bytes; with a small `scale` of its weights it ends seldom."""
    tokenizer = byte_tokenizer()
    decoder = random_decoder(ONE_BLOCK | {"vocabulary_size": tokenizer.vocabulary_size})
    for variable in decoder.trainable_variables:
        variable.assign(variable.value * scale)
    save_decoder(decoder, directory, end_of_text_id=tokenizer.end_of_text_id)
    tokenizer.save(directory)
    return directory
