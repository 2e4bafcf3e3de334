"""Small runs to examine, for the tests of diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfgpt import doctor
from tfgpt.diagnosis.probe_model import ProbeModel, at_constant_rate
from tfgpt.diagnosis.run_checks import training_batch
from tfgpt.pipeline.prepare import prepare
from tfgpt.training.distribution.strategy import resolve
from tfgpt.training.objectives.base import get_objective
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer_and_data

SMALL = (
    "--tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=32 "
    "--head_dim=16 --intermediate_dim=64 --sequence_length=32 --batch_size=4 --warmup_steps=2 --compile=graph "
    "--max_steps=200 --learning_rate=0.01"
).split()
"""A decoder of some 10,000 parameters on bytes."""


def recipe_of(text: Path, *more: str, base: Sequence[str] = SMALL) -> TrainConfig:
    """The recipe that `base` and further flags give."""
    settings = doctor.COMMAND.parse([*base, f"--train_text={text}", "--run_dir=/nonexistent/run", *more])
    settings.pop("doctor")
    return TrainConfig(**settings)


def subject_of(text: Path, *more: str, base: Sequence[str] = SMALL) -> ProbeModel:
    """The parts of that run, built."""
    recipe = recipe_of(text, *more, base=base)
    strategy = resolve(recipe.strategy)
    data = prepare(recipe.corpus, recipe.tokenizer_config(), log=lambda line: None)
    trainer, run_data = build_trainer_and_data(at_constant_rate(recipe), data, strategy)
    return ProbeModel.build(
        recipe,
        data,
        strategy,
        trainer,
        run_data,
        training_batch(recipe, data, get_objective(recipe.objective.objective)),
        small_tokens=128,
    )
