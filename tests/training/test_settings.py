"""Each setting of learning, at no library's default, changes what is learned, from the flag to the logits."""

import dataclasses
import functools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.small_step import VOCABULARY, batches, make_trainer
from tfgpt import train as command
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.model.lora import LoraConfig
from tfgpt.training.config import OptimizerConfig, ScheduleConfig, StepConfig
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer

RUN = "--train_text=none --batch_size=8 --sequence_length=12 --max_steps=4 --warmup_steps=0 --learning_rate=0.01"
SHAPE = "--preset=tiny --num_layers=1 --hidden_dim=16 --num_query_heads=2 --num_key_value_heads=1 --head_dim=8"
TINY = f"{SHAPE} --intermediate_dim=32"
MUON, LION = f"{TINY} --optimizer=muon", f"{TINY} --optimizer=lion"
LORA = "--init_from={model} --lora_rank=2 --lora_dropout=0.1"

# Changed settings, by what each is compared with.
CHANGES = {
    TINY: "optimizer=lion optimizer=adafactor optimizer=muon learning_rate=0.02 beta_1=0.5 beta_2=0.6 epsilon=0.01 "
    "weight_decay=3 ema_decay=0.05 schedule=linear schedule=wsd schedule=constant warmup_steps=3 max_steps=9 "
    "final_learning_rate_fraction=0.7 label_smoothing=0.3 z_loss=0.1 dtype=mixed_bfloat16 dropout=0.4",
    MUON: "adam_learning_rate=0.003 beta_1=0.5 beta_2=0.6 epsilon=0.01 momentum=0.3 weight_decay=3",
    LION: "beta_1=0.5 beta_2=0.6 weight_decay=3",
    f"{TINY} --optimizer=adafactor": "weight_decay=3",
    f"{TINY} --weight_decay=3": "weight_decay_exclude=^$",
    f"{TINY} --epsilon=0.01": "max_grad_norm=0.05",
    f"{TINY} --ema_decay=0.02": "ema_decay=0.05",
    f"{TINY} --schedule=wsd": "decay_fraction=0.9",
    f"{TINY} --dropout=0.4": "seed=7",
    LORA: "lora_rank=3 lora_alpha=7 lora_target_modules=query,down lora_dropout=0.6 base_weights=int8",
}
CASES = [(f"--{setting}", base) for base, settings in CHANGES.items() for setting in settings.split()]
CHANGE_NO_RESULT = {"gradient_accumulation_steps", "cross_entropy_chunk_tokens", "compile", "steps_per_execution"}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory):
    """From flags to the logits after two updates, by the averaged weights where there are any."""
    model: Path = tmp_path_factory.mktemp("model")
    save_decoder(make_trainer().decoder, model)
    first, second, held_out = batches(3)

    @functools.cache
    def logits(flags: str) -> np.ndarray:
        keras.utils.set_random_seed(0)
        recipe = TrainConfig(**command.COMMAND.parse(f"{RUN} {flags.format(model=model)}".split()))
        trainer = build_trainer(recipe, VOCABULARY)
        for batch in (first, second):
            trainer.train_step({name: tf.constant(value) for name, value in batch.items()})
        with trainer.averaged_weights():
            return tf.cast(trainer.decoder({"token_ids": held_out["token_ids"]}), tf.float32).numpy()

    tf.config.run_functions_eagerly(True)
    yield logits
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize(
    ("setting", "base"), CASES, ids=[f"{setting} with {base.split()[-1]}" for setting, base in CASES]
)
def test_a_setting_changes_what_is_learned(learned, setting: str, base: str):
    difference = np.abs(learned(f"{base} {setting}") - learned(base)).max()
    assert 1e-5 < difference < np.inf


def test_the_same_settings_learn_the_same(learned):
    np.testing.assert_array_equal(learned(TINY), learned(f"{TINY} --seed=0"))


def test_no_setting_is_left_out():
    groups = (OptimizerConfig, ScheduleConfig, StepConfig, LoraConfig)
    named = {setting.removeprefix("--").split("=")[0] for setting, _ in CASES}
    assert {field.name for group in groups for field in dataclasses.fields(group)} <= named | CHANGE_NO_RESULT
