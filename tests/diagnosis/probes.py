"""Small runs for the tests of diagnosis."""

from collections.abc import Sequence
from pathlib import Path

from tfgpt import doctor
from tfgpt.diagnosis.probe_model import ProbeModel, with_constant_rate
from tfgpt.diagnosis.run_checks import first_batch
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.pipeline.prepare import PreparedData, prepare
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

GPT2 = (
    "--position_embedding=learned --normalization=layer_norm --mlp=gelu --use_bias --query_key_norm=false "
    "--num_key_value_heads=2"
)


def config_of(text: Path, *more: str, base: Sequence[str] = SMALL) -> TrainConfig:
    """The configuration of a run with the flags `base` and `more`, each string with one or more of them."""
    flags = [*base, f"--train_text={text}", "--run_dir=/nonexistent/run", *" ".join(more).split()]
    settings = doctor.COMMAND.parse(flags)
    settings.pop("doctor")
    return TrainConfig(**settings)


def prepared(config: TrainConfig) -> PreparedData:
    return prepare(config.corpus, config.tokenizer_config(), log=lambda line: None)


def probe_of(text: Path, *more: str, base: Sequence[str] = SMALL) -> ProbeModel:
    config = config_of(text, *more, base=base)
    data, strategy = prepared(config), resolve(config.strategy)
    trainer, run_data = build_trainer_and_data(with_constant_rate(config), data, strategy)
    batch = first_batch(config, data, get_objective(config.objective.objective))
    return ProbeModel(config, data, strategy, trainer, run_data, batch, small_tokens=128)


def save_model(probe: ProbeModel, directory: Path) -> None:
    tokenizer = probe.data.tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("end_of_text_id", "end_of_turn_id", "padding_id")}
    save_decoder(probe.decoder, directory, **ids)
    tokenizer.save(directory)
