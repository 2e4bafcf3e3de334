"""Maximal update parametrization in training: activations move alike at all widths, learning rates carry over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tfgpt import train as command
from tfgpt.common.errors import SettingError
from tfgpt.pipeline.prepare import PreparedData, prepare
from tfgpt.search.at_width import at_width
from tfgpt.search.coordinate_check import coordinate_check, draw, slope
from tfgpt.training.recipe import Recipe

FLAGS = """--num_layers=1 --hidden_dim=64 --num_query_heads=4 --num_key_value_heads=4 --head_dim=16
--intermediate_dim=192
--initializer_range=0.125 --embedding_initializer_range=0.1 --vocabulary_size=300 --sequence_length=32 --batch_size=8
--schedule=linear --final_learning_rate_fraction=0 --warmup_steps=5 --max_steps=60 --learning_rate=0.016
--compile=graph --strategy=one""".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """400 kB in which words follow words by chance, some far more often than others."""
    random = np.random.default_rng(0)
    letters = "".join(chr(ord("a") + number) for number in range(26))
    words = ["".join(random.choice(list(letters), random.integers(2, 8))) for _ in range(400)]
    successors = random.integers(0, 400, (400, 12))
    common = 1.0 / np.arange(1, 13)
    chosen, word = [], 0
    for draw_number in random.choice(12, 70_000, p=common / common.sum()):
        word = int(successors[word, draw_number])
        chosen.append(words[word])
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text(" ".join(chosen))
    return path


@pytest.fixture(scope="module")
def recipe(text, tmp_path_factory) -> Recipe:
    flags = [*FLAGS, f"--train_text={text}", f"--run_dir={tmp_path_factory.mktemp('run')}"]
    return Recipe(**command.COMMAND.parse(flags))


@pytest.fixture(scope="module")
def data(recipe) -> PreparedData:
    return prepare(recipe.corpus, recipe.tokenizer_config(), say=lambda line: None)


def test_activations_move_alike_at_all_widths_and_do_not_in_the_standard_parametrization(recipe, data, tmp_path):
    # Small initial embeddings: what the initial logits add is gone at once (they shrink with the width).
    model = {**recipe.model, "initializer_range": 0.02, "embedding_initializer_range": 0.02}
    constant = dataclasses.replace(recipe.schedule, schedule="constant", warmup_steps=0)
    changes = coordinate_check(dataclasses.replace(recipe, model=model, schedule=constant), data, [32, 256], steps=3)
    for activation in ("block_0", "final_norm", "logits"):
        assert abs(slope(changes, "maximal_update", activation, 3)) < 0.15, activation
    assert slope(changes, "standard", "block_0", 3) > 0.5
    assert slope(changes, "standard", "logits", 3) > 0.25
    draw(changes, tmp_path / "coordinate_check.png")
    assert (tmp_path / "coordinate_check.png").stat().st_size > 10_000


def test_heads_become_more_or_wider_and_uneven_widths_are_refused(recipe):
    wider = at_width(recipe, 128).decoder_config(300)
    assert (wider.num_query_heads, wider.head_dim, wider.intermediate_dim) == (8, 16, 384)
    base = dataclasses.replace(recipe.parametrization, parametrization="maximal_update", base_head_dim=16)
    wider = at_width(dataclasses.replace(recipe, parametrization=base), 128).decoder_config(300)
    assert (wider.num_query_heads, wider.head_dim, wider.query_initializer_factor) == (4, 32, 0.5**0.5)
    with pytest.raises(SettingError, match="^--hidden_dim: 72: num_query_heads = 4 at --hidden_dim=64"):
        at_width(recipe, 72)


def test_maximal_update_with_adafactor_is_refused_by_name(recipe):
    flags = [*FLAGS, "--train_text=none", "--parametrization=maximal_update", "--optimizer=adafactor"]
    with pytest.raises(SettingError, match="^--parametrization: maximal_update is for --optimizer=adamw, muon or lion"):
        Recipe(**command.COMMAND.parse(flags))
