"""Maximal update parametrization in training: activations move alike at all widths, learning rates carry over."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tfgpt import train as command
from tfgpt.common.errors import SettingError
from tfgpt.pipeline.prepare import PreparedData, prepare
from tfgpt.search.scaling import at_width
from tfgpt.training.train_config import TrainConfig

FLAGS = """--num_layers=1 --hidden_dim=64 --num_query_heads=4 --num_key_value_heads=4 --head_dim=16
--intermediate_dim=192 --initializer_range=0.125 --embedding_initializer_range=0.1 --vocabulary_size=320
--sequence_length=32 --batch_size=8 --schedule=linear --final_learning_rate_fraction=0 --warmup_steps=5
--max_steps=60 --learning_rate=0.016 --weight_decay=0 --compile=graph --strategy=one""".split()


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("learning_rate_transfer")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("prose") / "topics.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics))[:300_000])
    return path


@pytest.fixture(scope="module")
def config(text, tmp_path_factory) -> TrainConfig:
    flags = [*FLAGS, f"--train_text={text}", f"--run_dir={tmp_path_factory.mktemp('run')}"]
    return TrainConfig(**command.COMMAND.parse(flags))


@pytest.fixture(scope="module")
def data(config) -> PreparedData:
    return prepare(config.corpus, config.tokenizer_config(), log=lambda line: None)


@pytest.mark.slow
def test_activations_move_alike_at_all_widths_and_do_not_in_the_standard_parametrization(
    script, text, tmp_path, capsys
):
    # By the script, without its sweep. Small initial weights: what they add to a change shrinks with the width and
    # would hide what the updates add.
    flags = [*FLAGS, f"--train_text={text}", f"--run_dir={tmp_path / 'run'}", f"--output={tmp_path}"]
    flags += ["--initializer_range=0.02", "--embedding_initializer_range=0.02", "--learning_rate=0.004"]
    flags += ["--schedule=constant", "--warmup_steps=0", "--widths=64,256", "--learning_rates=", "--check_steps=3"]
    assert script.COMMAND.run(flags) == 0
    slopes = json.loads(capsys.readouterr().out.splitlines()[-1])["slopes"]
    for activation in ("block_0", "final_norm", "logits"):
        assert abs(slopes["maximal_update"][activation]) < 0.15, activation
    assert slopes["standard"]["block_0"] > 1.0
    assert slopes["standard"]["logits"] > 0.5
    assert (tmp_path / "coordinate_check.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_best_learning_rate_at_width_64_is_the_best_at_width_256(script, config, data):
    losses = script.sweep(config, data, "maximal_update", [64, 256], [0.004, 0.016, 0.064])
    assert [script.best_rate(losses[width]) for width in (64, 256)] == [0.016, 0.016]
    # Wider is better at the same settings.
    assert losses[256][0.016] < losses[64][0.016]


def test_heads_become_more_or_wider_and_uneven_widths_are_refused(config):
    wider = at_width(config, 128).decoder_config(320)
    assert (wider.num_query_heads, wider.head_dim, wider.intermediate_dim) == (8, 16, 384)
    shared = dataclasses.replace(config, model={**config.model, "num_key_value_heads": 1})
    assert at_width(shared, 128).decoder_config(320).num_key_value_heads == 1
    base = dataclasses.replace(config.parametrization, parametrization="maximal_update", base_head_dim=16)
    wider = at_width(dataclasses.replace(config, parametrization=base), 128).decoder_config(320)
    assert (wider.num_query_heads, wider.head_dim, wider.query_initializer_factor) == (4, 32, 0.5**0.5)
    with pytest.raises(SettingError, match="^--hidden_dim: 72: num_key_value_heads = 4 at --hidden_dim=64"):
        at_width(config, 72)


def test_maximal_update_with_adafactor_is_refused_by_name(config):
    flags = [*FLAGS, "--train_text=none", "--parametrization=maximal_update", "--optimizer=adafactor"]
    with pytest.raises(SettingError, match="^--parametrization: maximal_update is for --optimizer=adamw, muon or lion"):
        TrainConfig(**command.COMMAND.parse(flags))
