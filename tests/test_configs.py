"""Claim: every flag file in configs/ trains, shrunk to three small updates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tfgpt import scale, tune
from tfgpt import train as command
from tfgpt.search.plan import make_plan
from tfgpt.training.recipe import Recipe
from tfgpt.training.run import train

SHRUNK = """--num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 --head_dim=8
--intermediate_dim=32
--sequence_length=16 --batch_size=4 --max_steps=3 --log_every=1 --validate_every=3 --sample_tokens=2 --compile=graph
--vocabulary_size=320 --strategy=one""".split()


CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.cfg") if not path.name.startswith("tune_"))
SEARCHES = sorted(path.name for path in (ROOT / "configs").glob("tune_*.cfg"))
# The files for one model on several TPUs differ in sizes only: one of them trains for all.
TRAINED = [name for name in CONFIGS if not name.startswith("tpu_") or name.endswith("_v5e.cfg")]
SIZES = {"batch_size", "accumulation_steps", "cross_entropy_chunk_tokens", "optimizer", "run_dir"}


def parsed(config: str, flags: list[str]) -> dict:
    """The settings of `train` in a config; those of a scaling law are for `scale`, which has flags of its own."""
    settings = (scale if config.startswith("scaling_") else command).COMMAND.parse(flags)
    settings.pop("scaling", None)
    return settings


SHAPE = ("num_", "hidden_dim", "head_dim", "intermediate_dim", "vocabulary_size", "sequence_length")


def begins_with_a_model(config: str) -> bool:
    """Whether the file has --init_from."""
    return "--init_from" in (ROOT / "configs" / config).read_text()


@pytest.fixture(scope="module")
def small_model(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to go on from."""
    directory = tmp_path_factory.mktemp("model") / "run"
    flags = [f"--train_text={text_file}", f"--run_dir={directory}", "--max_sequence_length=64"]
    recipe = Recipe(**command.COMMAND.parse([*SHRUNK, *flags]))
    assert train(recipe, command.COMMAND.flag_file(recipe.settings())) == 0
    return directory / "model"


def lines_for(objective: str, number: int) -> str:
    """What the objective learns from, as JSON Lines."""
    said = [[{"role": "user", "content": f"{number} {line}?"}] for line in range(40)]
    if objective == "chat":
        lines = [{"messages": [*asked, {"role": "assistant", "content": "yes"}]} for asked in said]
    elif objective == "grpo":
        lines = [{"prompt": f"{line}+1=", "answer": str(line + 1)} for line in range(40)]
    else:
        lines = [{"prompt": asked, "chosen": "yes", "rejected": "no"} for asked in said]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize("config", [name for name in TRAINED if not begins_with_a_model(name)])
def test_the_config_trains(config: str, text_file: Path, tmp_path: Path):
    flags = [f"--flagfile={ROOT / 'configs' / config}", f"--train_text={text_file}", f"--run_dir={tmp_path / 'run'}"]
    whole = parsed(config, flags)
    # The config as it is passes every check that is made before TensorFlow is imported.
    Recipe(**whole)
    accumulated = ["--accumulation_steps=2"] if whole["step"].accumulation_steps > 1 else []
    recipe = Recipe(**parsed(config, [*flags, *SHRUNK, *accumulated]))
    assert train(recipe, command.COMMAND.flag_file(recipe.settings())) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["validation_loss"] > 0


@pytest.mark.parametrize("config", [name for name in TRAINED if begins_with_a_model(name)])
def test_the_config_goes_on_from_a_model(config: str, small_model: Path, tmp_path: Path):
    flags = [f"--flagfile={ROOT / 'configs' / config}", f"--init_from={small_model}", f"--run_dir={tmp_path / 'run'}"]
    config_as_it_is = command.COMMAND.parse(flags)
    objective, corpus = config_as_it_is["objective"].objective, config_as_it_is["corpus"]
    for number in range(len(corpus.train_text)):
        (tmp_path / f"{number}.jsonl").write_text(lines_for(objective, number))
        flags.append(f"--train_text={tmp_path / f'{number}.jsonl'}")
    if corpus.validation_text:
        flags.append(f"--validation_text={tmp_path / '0.jsonl'}")
    sizes = ["--sequence_length=64", "--validation_fraction=0.3", "--checkpoint_every=3", "--group_size=2"]
    flags += sizes + [flag for flag in SHRUNK if not flag[2:].startswith(SHAPE)]
    recipe = Recipe(**command.COMMAND.parse(flags))
    assert train(recipe, command.COMMAND.flag_file(recipe.settings())) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and math.isfinite(rows[-1]["validation_loss"])


@pytest.mark.parametrize("config", sorted(set(CONFIGS) - set(TRAINED)))
def test_the_config_differs_from_the_one_that_trains_in_sizes_only(config: str):
    def flags(name: str) -> dict:
        return Recipe(**command.COMMAND.parse([f"--flagfile={ROOT / 'configs' / name}", "--train_text=none"])).flags()

    mine, trained = flags(config), flags(f"{config.rsplit('_', 1)[0]}_v5e.cfg")
    assert {name for name in mine if mine[name] != trained.get(name)} <= SIZES


@pytest.mark.parametrize("config", SEARCHES)
def test_the_config_of_a_search_passes_every_check_that_is_made_before_tensorflow_is_imported(config: str, tmp_path):
    flags = tune.COMMAND.parse([f"--flagfile=configs/{config}", f"--search_dir={tmp_path}"])
    plan = make_plan(flags.pop("search"), flags)
    assert plan.recipe({}, "0000").run.max_steps < flags["run"].max_steps
