"""Maximal update parametrization in training: activations move alike at all widths, learning rates carry over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tfgpt import train as command
from tfgpt.common.errors import SettingError
from tfgpt.pipeline.prepare import PreparedData, prepare
from tfgpt.search.at_width import at_width
from tfgpt.search.learning_rate_transfer import best_learning_rate, mean_losses, sweep
from tfgpt.training.recipe import Recipe

FLAGS = """--num_layers=1 --hidden_dim=64 --num_query_heads=4 --num_key_value_heads=4 --head_dim=16
--intermediate_dim=192 --initializer_range=0.125 --embedding_initializer_range=0.1 --vocabulary_size=320
--sequence_length=32 --batch_size=8 --schedule=linear --final_learning_rate_fraction=0 --warmup_steps=5
--max_steps=60 --learning_rate=0.016 --weight_decay=0 --compile=graph --strategy=one""".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """300 kB of English prose: Python's own reference, which every Python has."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("prose") / "topics.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics))[:300_000])
    return path


@pytest.fixture(scope="module")
def recipe(text, tmp_path_factory) -> Recipe:
    flags = [*FLAGS, f"--train_text={text}", f"--run_dir={tmp_path_factory.mktemp('run')}"]
    return Recipe(**command.COMMAND.parse(flags))


@pytest.fixture(scope="module")
def data(recipe) -> PreparedData:
    return prepare(recipe.corpus, recipe.tokenizer_config(), say=lambda line: None)


def test_the_best_learning_rate_at_width_64_is_the_best_at_width_256(recipe, data):
    rates = [0.004, 0.016, 0.064]
    points = sweep(recipe, data, [64, 256], rates, ["maximal_update"])
    assert (
        best_learning_rate(points, "maximal_update", 64) == best_learning_rate(points, "maximal_update", 256) == 0.016
    )
    # Wider is better at the same settings.
    narrow, wide = (mean_losses(points, "maximal_update", width)[0.016] for width in (64, 256))
    assert wide < narrow


def test_heads_become_more_or_wider_and_uneven_widths_are_refused(recipe):
    wider = at_width(recipe, 128).decoder_config(320)
    assert (wider.num_query_heads, wider.head_dim, wider.intermediate_dim) == (8, 16, 384)
    shared = dataclasses.replace(recipe, model={**recipe.model, "num_key_value_heads": 1})
    assert at_width(shared, 128).decoder_config(320).num_key_value_heads == 1
    base = dataclasses.replace(recipe.parametrization, parametrization="maximal_update", base_head_dim=16)
    wider = at_width(dataclasses.replace(recipe, parametrization=base), 128).decoder_config(320)
    assert (wider.num_query_heads, wider.head_dim, wider.query_initializer_factor) == (4, 32, 0.5**0.5)
    with pytest.raises(SettingError, match="^--hidden_dim: 72: num_key_value_heads = 4 at --hidden_dim=64"):
        at_width(recipe, 72)


def test_maximal_update_with_adafactor_is_refused_by_name(recipe):
    flags = [*FLAGS, "--train_text=none", "--parametrization=maximal_update", "--optimizer=adafactor"]
    with pytest.raises(SettingError, match="^--parametrization: maximal_update is for --optimizer=adamw, muon or lion"):
        Recipe(**command.COMMAND.parse(flags))
