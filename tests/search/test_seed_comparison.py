"""The best trials and the default settings with several seeds, at equal tokens, with their spread."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tfgpt import tune as command
from tfgpt.common.atomic_files import write_json
from tfgpt.common.errors import UserError
from tfgpt.search.seed_comparison import format_summary, summarize
from tfgpt.search.study import TRAIN, Study, make_study
from tfgpt.search.trials import Trial, TrialTable

FLAGS = """--num_layers=1 --hidden_dim=16 --num_query_heads=2 --num_key_value_heads=1 --head_dim=8 --intermediate_dim=32
--vocabulary_size=300 --sequence_length=16 --batch_size=4 --compile=graph --strategy=one --warmup_steps=2
--learning_rate=0.001 --trial_tokens=512 --tensorboard=false --validate_every=8""".split()
SPACE = """[search.learning_rate]
type = "float"
min = 1e-3
max = 3e-2
scale = "log"

[search.batch_size]
choices = [4, 8]
"""


@pytest.fixture(scope="module")
def searched(text_file, tmp_path_factory) -> tuple[list[str], Study]:
    """A search that is over: its flags, and its study; trial 0001 was the best."""
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "space.toml").write_text(SPACE)
    flags = [*FLAGS, f"--train_text={text_file}", f"--search_dir={folder / 'search'}"]
    flags += [f"--search_space={folder / 'space.toml'}"]
    settings = command.COMMAND.parse(flags)
    settings.pop("seed_comparison")
    study = make_study(settings.pop("search"), settings)
    study.claim()
    trials = [("0000", {"learning_rate": 0.002, "batch_size": 4}, 5.0)]
    trials += [("0001", {"learning_rate": 0.02, "batch_size": 8}, 4.0)]
    for name, trial_flags, _ in trials:
        write_json(study.trial_dir(name) / "result.json", {"request": {"flags": trial_flags}})
    rows = tuple(Trial(name, "completed", trial_flags, bits, {"tokens": 512}) for name, trial_flags, bits in trials)
    TrialTable(study.directory, study.search.search_objective, tuple(study.space.columns()), rows).write()
    return flags, study


def test_the_best_trial_is_trained_again_with_other_seeds_and_compared_with_the_default(searched, capsys):
    flags, study = searched
    again = [*flags, "--report_only", "--compare_best=1", "--compare_seeds=2"]
    assert command.main(again) == 0
    said = capsys.readouterr().out
    found = json.loads((study.directory / "seed_comparison.json").read_text())
    assert found["tokens"] == found["tokens_least"] == 512
    assert [each["name"] for each in found["settings"]] == ["default", "0001"]
    with open(study.directory / "seed_comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["settings"], row["seed"]) for row in rows] == [
        ("default", "1"), ("0001", "1"), ("default", "2"), ("0001", "2"),
    ]  # fmt: skip
    # Each run is the trial's, or the command's, with a seed of its own.
    for name, rate, batch in (("0001", 0.02, 8), ("default", 0.001, 4)):
        parsed = TRAIN.parse([f"--flagfile={study.directory / 'top' / name / 'seed-2' / 'flags.cfg'}"])
        used = (parsed["optimizer"].learning_rate, parsed["batch"].batch_size, parsed["run"].seed)
        assert used == (rate, batch, 2)
        # The objective is the run's own lowest validation.
        lines = (study.directory / "top" / name / "seed-2" / "metrics.jsonl").read_text().splitlines()
        validations = [json.loads(line)["validation_bits_per_byte"] for line in lines if "validation_loss" in line]
        (row,) = [row for row in rows if (row["settings"], row["seed"]) == (name, "2")]
        assert float(row["objective"]) == min(validations[-2:])
    assert "Trained again: validation_bits_per_byte after 512 tokens" in (study.directory / "report.html").read_text()
    assert "minus default, seed by seed" in said
    before = (study.directory / "top/0001/seed-1/log.txt").stat().st_mtime_ns
    assert command.main(again) == 0
    assert (study.directory / "top/0001/seed-1/log.txt").stat().st_mtime_ns == before
    assert command.main([*again, "--compare_tokens=1024"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and error.startswith("tfgpt.tune: --search_dir: ")


def test_the_best_are_trained_again_where_plotly_is_missing_and_the_report_that_is_not_made_is_an_error(
    searched, capsys, monkeypatch
):
    flags, study = searched
    (study.directory / "report.html").unlink(missing_ok=True)
    (study.directory / "seed_comparison.json").unlink(missing_ok=True)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "plotly" else find(name, *more))
    assert command.main([*flags, "--report_only", "--compare_best=1", "--compare_seeds=2"]) == 2
    said = capsys.readouterr().out
    assert "minus default, seed by seed" in said and (study.directory / "seed_comparison.json").is_file()
    assert "No report.html: plotly is not installed (pip install 'tfgpt[search]')" in said.splitlines()[-1]


def test_differences_are_paired_by_seed_and_their_interval_is_students():
    values = {"default": [2.0, 2.2, 2.1], "0004": [1.9, 2.05, 2.02]}
    results = {(name, seed): {"validation_loss": each[seed - 1], "tokens": 100}
               for name, each in values.items() for seed in (1, 2, 3)}  # fmt: skip
    found = summarize("validation_loss", results, ["default", "0004"], [1, 2, 3])
    best = found["settings"][1]
    assert best["standard_deviation"] == pytest.approx(np.std(values["0004"], ddof=1))
    interval = stats.ttest_rel(values["0004"], values["default"]).confidence_interval(0.95)
    difference = best["difference"]
    assert (difference["low"], difference["high"]) == pytest.approx((interval.low, interval.high))
    assert difference["mean"] == pytest.approx(-0.11)
    assert "0004     1.9900 ± 0.0794; minus default, seed by seed: -0.1100 (95%: " in format_summary(found)


def test_a_report_of_no_search_is_refused_by_name(searched, tmp_path: Path, capsys):
    flags, _ = searched
    assert command.main([*flags, f"--search_dir={tmp_path / 'nothing'}", "--report_only"]) == 2
    assert "does not contain a search (trials.csv is missing)" in capsys.readouterr().err
    with pytest.raises(UserError, match="compare_seeds"):
        command.COMMAND.parse([*flags, "--compare_seeds=1"])
