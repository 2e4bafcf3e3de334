"""Claim: every flag file in configs/ trains, shrunk to three small updates."""

import json
import math
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tfgpt import scale, tune
from tfgpt import train as command
from tfgpt.search.study import make_study
from tfgpt.training.run import train
from tfgpt.training.train_config import TrainConfig

SHRUNK = """--num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 --head_dim=8
--intermediate_dim=32
--sequence_length=16 --batch_size=4 --max_steps=3 --log_every=1 --validate_every=3 --sample_tokens=2 --compile=graph
--vocabulary_size=320 --strategy=one""".split()


CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.cfg") if not path.name.startswith("tune_"))
SEARCHES = sorted(path.name for path in (ROOT / "configs").glob("tune_*.cfg"))
# The files for one model on several TPUs differ in sizes only: one of them trains for all.
CHAT_CONFIGS = [name for name in CONFIGS if name.startswith("chat_")]
# What pairs of answers or rewards teach a model that is there already.
JUDGED = ["addition_grpo.cfg", "dpo_replies.cfg"]
TRAINED = [
    name
    for name in CONFIGS
    if name not in CHAT_CONFIGS + JUDGED and (not name.startswith("tpu_") or name.endswith("_v5e.cfg"))
]
SIZES = {"batch_size", "gradient_accumulation_steps", "cross_entropy_chunk_tokens", "optimizer", "run_dir"}


# What a chat config starts from brings its own shape and tokenizer.
OF_THE_MODEL = ("--num_", "--hidden_dim", "--head_dim", "--intermediate_dim", "--vocabulary_size")


@pytest.fixture(scope="module")
def tiny_model(text_file: Path, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "run"
    flags = [f"--train_text={text_file}", f"--run_dir={directory}", "--sample_tokens=0", *SHRUNK]
    recipe = TrainConfig(**command.COMMAND.parse([*flags, "--max_sequence_length=256"]))
    assert train(recipe, "") == 0
    return directory / "model"


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> list[Path]:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi."}]
    paths = []
    for greeting in ("Hi", "Hello"):
        said = [[{**turns[0], "content": f"{greeting} {number}"}, turns[1]] for number in range(100)]
        paths.append(tmp_path_factory.mktemp("chats") / f"{greeting}.jsonl")
        paths[-1].write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
    return paths


@pytest.mark.parametrize("config", CHAT_CONFIGS)
def test_the_chat_config_trains(config: str, chats: list[Path], tiny_model: Path, tmp_path: Path):
    flags = [f"--flagfile={ROOT / 'configs' / config}", f"--init_from={tiny_model}", f"--run_dir={tmp_path / 'run'}"]
    whole = command.COMMAND.parse(flags)
    TrainConfig(**whole)
    sources = [f"--train_text={path}" for path in chats[: len(whole["corpus"].train_text)]]
    shrunk = [flag for flag in SHRUNK if not flag.startswith(OF_THE_MODEL)]
    short = ["--validation_fraction=0.1", "--sequence_length=64"]
    recipe = TrainConfig(**command.COMMAND.parse([*flags, *sources, *shrunk, *short]))
    assert train(recipe, command.COMMAND.flag_file(recipe.settings())) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["validation_loss"] > 0


def parsed(config: str, flags: list[str]) -> dict:
    """The settings of `train` in a config; those of a scaling law are for `scale`, which has flags of its own."""
    settings = (scale if config.startswith("scaling_") else command).COMMAND.parse(flags)
    settings.pop("scaling", None)
    return settings


@pytest.mark.parametrize("config", TRAINED)
def test_the_config_trains(config: str, text_file: Path, tmp_path: Path):
    flags = [f"--flagfile={ROOT / 'configs' / config}", f"--train_text={text_file}", f"--run_dir={tmp_path / 'run'}"]
    whole = parsed(config, flags)
    # The config as it is passes every check that is made before TensorFlow is imported.
    TrainConfig(**whole)
    accumulated = ["--gradient_accumulation_steps=2"] if whole["step"].gradient_accumulation_steps > 1 else []
    recipe = TrainConfig(**parsed(config, [*flags, *SHRUNK, *accumulated]))
    assert train(recipe, command.COMMAND.flag_file(recipe.settings())) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and rows[-1]["validation_loss"] > 0


@pytest.mark.parametrize("config", JUDGED)
def test_the_config_of_judged_answers_trains(config: str, tiny_model: Path, tmp_path: Path):
    asked = [[{"role": "user", "content": f"{number}?"}] for number in range(40)]
    pairs = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in asked]
    sums = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(40)]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(line) + "\n" for line in (sums if "grpo" in config else pairs)))
    flags = [f"--flagfile={ROOT / 'configs' / config}", f"--init_from={tiny_model}", f"--run_dir={tmp_path / 'run'}"]
    TrainConfig(**command.COMMAND.parse(flags))
    shrunk = [flag for flag in SHRUNK if not flag.startswith(OF_THE_MODEL)]
    short = [f"--train_text={text}", "--validation_fraction=0.3", "--sequence_length=64", "--group_size=2"]
    short += [f"--validation_text={text}"] if "grpo" in config else []
    recipe = TrainConfig(**command.COMMAND.parse([*flags, *shrunk, *short]))
    assert train(recipe, command.COMMAND.flag_file(recipe.settings())) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3 and math.isfinite(rows[-1]["validation_loss"])


@pytest.mark.parametrize("config", sorted(set(CONFIGS) - set(TRAINED) - set(CHAT_CONFIGS) - set(JUDGED)))
def test_the_config_differs_from_the_one_that_trains_in_sizes_only(config: str):
    def flags(name: str) -> dict:
        return TrainConfig(
            **command.COMMAND.parse([f"--flagfile={ROOT / 'configs' / name}", "--train_text=none"])
        ).flags()

    mine, trained = flags(config), flags(f"{config.rsplit('_', 1)[0]}_v5e.cfg")
    assert {name for name in mine if mine[name] != trained.get(name)} <= SIZES


@pytest.mark.parametrize("config", SEARCHES)
def test_the_config_of_a_search_passes_every_check_that_is_made_before_tensorflow_is_imported(config: str, tmp_path):
    flags = tune.COMMAND.parse([f"--flagfile=configs/{config}", f"--search_dir={tmp_path}"])
    flags.pop("seed_comparison")
    study = make_study(flags.pop("search"), flags)
    assert study.train_config({}, "0000").run.max_steps < flags["run"].max_steps
