"""Claim: every flag file in configs/ trains, shrunk to three small updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tfgpt import train as command
from tfgpt.training.recipe import Recipe
from tfgpt.training.run import train

SHRUNK = """--num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 --head_dim=8
--intermediate_dim=32
--sequence_length=16 --batch_size=4 --max_steps=3 --log_every=1 --validate_every=3 --sample_tokens=2 --compile=graph
--vocabulary_size=320""".split()


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.cfg")))
def test_the_config_trains(config: str, text_file: Path, tmp_path: Path):
    flags = [f"--flagfile={ROOT / 'configs' / config}", f"--train_text={text_file}", f"--run_dir={tmp_path / 'run'}"]
    whole = command.COMMAND.parse(flags)
    # The config as it is passes every check that is made before TensorFlow is imported.
    Recipe(**whole)
    accumulated = ["--accumulation_steps=2"] if whole["step"].accumulation_steps > 1 else []
    recipe = Recipe(**command.COMMAND.parse([*flags, *SHRUNK, *accumulated]))
    assert train(recipe, command.COMMAND.flag_file(recipe.settings())) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["validation_loss"] > 0
