"""A run's own flag file goes on with that run wherever it lies, and a search's best.cfg with that search's best run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfgpt import doctor, scale, train, tune


def written(file: Path, run_dir: Path | str, *beside: str) -> Path:
    """A flag file as `train` leaves one, and what lies beside it."""
    settings = train.COMMAND.parse(["--train_text=a.txt", f"--run_dir={run_dir}"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(train.COMMAND.flag_file(settings))
    for name in beside:
        (file.parent / name).touch()
    return file


@pytest.mark.parametrize("command", [train.COMMAND, doctor.COMMAND, tune.COMMAND, scale.COMMAND])
def test_a_moved_run_is_the_run_directory_of_its_flag_file(command, tmp_path):
    file = written(tmp_path / "elsewhere" / "flags.cfg", "runs/old", "metrics.jsonl")
    more = ["--search_space=space.toml"] if command is tune.COMMAND else []
    assert command.parse([f"--flagfile={file}", *more])["run"].run_dir == str(tmp_path / "elsewhere")


def test_a_copied_run_goes_on_in_the_copy_though_the_first_is_still_there(tmp_path):
    first = written(tmp_path / "first" / "flags.cfg", tmp_path / "first", "metrics.jsonl")
    copy = written(tmp_path / "copy" / "flags.cfg", tmp_path / "first", "metrics.jsonl")
    assert train.COMMAND.parse([f"--flagfile={first}"])["run"].run_dir == str(tmp_path / "first")
    assert train.COMMAND.parse([f"--flagfile={copy}"])["run"].run_dir == str(tmp_path / "copy")


def test_a_run_directory_behind_the_flag_file_wins(tmp_path):
    file = written(tmp_path / "elsewhere" / "flags.cfg", "runs/old", "metrics.jsonl")
    assert train.COMMAND.parse([f"--flagfile={file}", "--run_dir=runs/new"])["run"].run_dir == "runs/new"


def test_a_run_that_was_not_moved_keeps_its_name_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "runs" / "a" / "flags.cfg", "runs/a", "checkpoints")
    assert train.COMMAND.parse(["--flagfile=./runs/../runs/a/flags.cfg"])["run"].run_dir == "runs/a"


def test_a_flag_file_that_is_no_runs_own_names_the_run_directory_that_stands_in_it(tmp_path):
    for name in ("flags.cfg", "best.cfg", "mine.cfg"):
        file = written(tmp_path / name, "runs/old")
        assert train.COMMAND.parse([f"--flagfile={file}"])["run"].run_dir == "runs/old"


def test_the_best_flags_of_a_moved_search_train_inside_it(tmp_path):
    file = written(tmp_path / "search" / "best.cfg", "runs/a-search/best", "search.json")
    assert train.COMMAND.parse([f"--flagfile={file}"])["run"].run_dir == str(tmp_path / "search" / "best")
