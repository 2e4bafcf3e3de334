"""Claims of the search space: trials get its values, and errors in it are one line."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.search.conftest import TINY
from tfgpt import tune
from tfgpt.common.errors import UserError
from tfgpt.model.cost import count_parameters, training_flops_per_token
from tfgpt.search.config import SearchConfig
from tfgpt.search.study import TRAIN, Study, make_study

GOOD = """
[fixed]
weight_decay = 0.02
[search.learning_rate]
type = "float"
min = 1e-3
max = 1e-1
scale = "log"
[search.batch_size]
choices = [2, 4]
[search.optimizer]
choices = ["adamw", "muon"]
[search.momentum]
type = "float"
min = 0.8
max = 0.9
when = { optimizer = "muon" }
"""


def study_of(text: str, folder: Path, *flags: str, **search: Any) -> Study:
    path = folder / "space.toml"
    path.write_text(text, encoding="utf-8")
    search_config = SearchConfig(search_space=str(path), search_dir=str(folder / "search"), **search)
    return make_study(search_config, TRAIN.parse(["--train_text=none.txt", *TINY, *flags]))


def test_a_trial_has_the_flags_of_the_command_the_space_and_the_tuner(tmp_path: Path):
    study = study_of(GOOD, tmp_path, "--momentum=0.7", trial_tokens=6400)
    values = {"learning_rate": 0.02, "batch_size": 2, "optimizer": "muon", "momentum": 0.85}
    config = study.train_config(study.space.flags(values), "0003")
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (0.02, 0.85, 0.02)
    # Equal tokens: 6400 are 200 updates of 2 rows of 16 tokens.
    assert (config.run.max_steps, config.batch.batch_size) == (200, 2)
    assert config.run_dir == tmp_path / "search/trials/0003"
    # What does not count in a trial has its default, not the command's value.
    values = {"learning_rate": 0.02, "batch_size": 4, "optimizer": "adamw"}
    other = study.train_config(study.space.flags(values), "0004")
    assert (other.optimizer.momentum, other.run.max_steps) == (0.95, 100)
    assert study.space.columns() == ["learning_rate", "batch_size", "optimizer", "momentum"]


def test_a_hyperband_trial_validates_at_the_end_of_each_of_its_epochs(tmp_path: Path):
    study = study_of(GOOD, tmp_path, "--max_steps=100", tuner="hyperband")
    config = study.train_config({"learning_rate": 0.01}, "0000")
    assert (config.run.max_steps, config.logging.validate_every) == (99, 11)


@pytest.mark.parametrize("flag", ["parameters", "training_flops_per_token"])
def test_architectures_fit_the_budget(flag: str, tmp_path: Path):
    goal = 30_000 if flag == "parameters" else 200_000
    text = f"[architecture]\n{flag} = {goal}\ntolerance = 0.1\nnum_layers = [1, 2, 3, 4, 5]\nhead_dim = [4, 8]\n"
    study = study_of(text, tmp_path)
    assert len(study.space.shapes) >= 5 and len({shape["num_layers"] for shape in study.space.shapes.values()}) >= 3
    for label in study.space.shapes:
        config = study.train_config(study.space.flags({"architecture": label}), "0000")
        decoder = config.decoder_config(260)
        flops = training_flops_per_token(decoder, 16)
        cost = count_parameters(decoder) if flag == "parameters" else flops
        assert abs(cost / goal - 1) <= 0.1
    assert study.space.columns() == ["num_layers", "hidden_dim", "num_query_heads", "head_dim"]


RATE = "[search.learning_rate]\ntype = 'float'\nmin = 1e-3\nmax = 1e-2\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[search.learning_rat]\nchoices = [1.0]", "train has no flag --learning_rat; did you mean learning_rate?"),
        ("search = 3", "search is not a table; write [search]"),
        (RATE.replace("1e-3", "nan"), "min: is not a number"),
        (RATE.replace("1e-2", "inf"), "max: is not a finite number"),
        (RATE.replace("'float'", "[]"), "needs choices, or type = float, int or bool"),
        ("[search.learning_rate]\nchoices = [1e400]", "is not a finite number"),
        ("[fixed]\nlearnrate = 1", "train has no flag --learnrate"),
        (RATE.replace("1e-3", "1e-1"), "min = 0.1 is not below max = 0.01"),
        (RATE + "scal = 'log'", "unknown key 'scal'; did you mean scale?"),
        (RATE.replace("1e-3", "0.0") + "scale = 'log'", "a log scale needs min above 0"),
        (RATE.replace("1e-3", "-1.0"), "-1.0 is below the smallest allowed, 0.0"),
        (RATE + "choices = [1e-3]", "min cannot be combined with choices"),
        ("[search.num_layers]\ntype = 'float'\nmin = 1.0\nmax = 4.0", "--num_layers is of type int, not float"),
        ("[search.optimizer]\nchoices = ['adamw', 'sgd']", "'sgd' is not one of adamw, muon"),
        ("[search.batch_size]\nchoices = [2, 2]", "a choice appears twice"),
        ("[search.batch_size]\nchoices = ['two']", "'two' is not of type int"),
        (RATE + "when = { optimizer = 'muon' }", "optimizer is not searched above it"),
        ("[search.max_steps]\nchoices = [1, 2]", "trials must train equally long"),
        ("[search.seed]\nchoices = [1, 2]", "the best seed is luck"),
        ("[search.num_query_heads]\nchoices = [2, 3]", "search.num_query_heads = 3: "),
        (RATE + "[fixed]\nlearning_rate = 0.1", "learning_rate is given twice"),
        ("[architecture]\nparameters = 10\nnum_layers = [1]", "no shape has parameters within 5% of 10"),
        ("[architecture]\nnum_layers = [1]", "needs one of parameters and training_flops_per_token"),
        ("description = 'nothing'", "nothing to search"),
        ("\ufeffdescription = 'nothing'", "nothing to search"),  # A byte-order mark is skipped.
        ("[search", "not a TOML file"),
    ],
)
def test_what_is_wrong_with_a_space_is_one_line_before_tensorflow_is_imported(text, said, tmp_path, capsys):
    path = tmp_path / "space.toml"
    path.write_text(text)
    arguments = ["--train_text=none.txt", *TINY, "--num_key_value_heads=2", f"--search_space={path}"]
    assert tune.main([*arguments, f"--search_dir={tmp_path / 'search'}"]) == 2
    out, error = capsys.readouterr()
    assert said in error and str(path) in error and error.count("\n") == 1 and out == ""
    assert not (tmp_path / "search").exists()


def test_the_directory_of_another_search_is_refused_and_left_alone(tmp_path: Path):
    study_of(GOOD, tmp_path).claim()
    before = (tmp_path / "search/search.json").read_bytes()
    study_of(GOOD, tmp_path, max_trials=3, parallel=2).claim()  # only longer, or elsewhere
    with pytest.raises(UserError, match=r"search.learning_rate.max was 0.1, is 0.2"):
        study_of(GOOD.replace("1e-1", "2e-1"), tmp_path).claim()
    with pytest.raises(UserError, match="--search_seed was 0, is 1"):
        study_of(GOOD, tmp_path, search_seed=1).claim()
    with pytest.raises(UserError, match="--dropout was None, is 0.1|--dropout was not there, is 0.1"):
        study_of(GOOD, tmp_path, "--dropout=0.1").claim()
    assert (tmp_path / "search/search.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("Dear reader")
    with pytest.raises(UserError, match="holds other files|not part of an earlier"):
        dataclasses.replace(study_of(GOOD, tmp_path), directory=tmp_path / "other").claim()


def test_losses_of_different_tokenizers_are_not_compared(tmp_path: Path):
    text = "[search.vocabulary_size]\nchoices = [300, 400]"
    with pytest.raises(UserError, match="use validation_bits_per_byte"):
        study_of(text, tmp_path, "--tokenizer=bpe", search_objective="validation_loss")


SPACES = sorted(path.name for path in (ROOT / "configs/search").glob("*.toml"))


@pytest.mark.parametrize("name", [name for name in SPACES if name != "lora.toml"])
def test_the_ready_spaces_fit_the_flags(name: str, tmp_path: Path):
    flags = [f"--flagfile={ROOT / 'configs/quickstart.cfg'}", *(["--objective=chat"] if name == "mixture.toml" else [])]
    search = SearchConfig(search_space=str(ROOT / "configs/search" / name), search_dir=str(tmp_path))
    assert make_study(search, TRAIN.parse(flags)).space.columns()
