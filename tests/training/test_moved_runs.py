"""A run's own flag file goes on with that run wherever it lies, and a search's best.cfg with that search's best run."""

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


def run_dir(file: Path | str, *more: str, command=train.COMMAND) -> str:
    return command.parse([f"--flagfile={file}", *more])["run"].run_dir


@pytest.mark.parametrize("command", [train.COMMAND, doctor.COMMAND, tune.COMMAND, scale.COMMAND])
def test_a_moved_run_is_the_run_directory_of_its_flag_file_unless_one_is_given(command, tmp_path):
    file = written(tmp_path / "elsewhere" / "flags.cfg", "runs/old", "metrics.jsonl")
    more = ["--search_space=space.toml"] if command is tune.COMMAND else []
    assert run_dir(file, *more, command=command) == str(tmp_path / "elsewhere")
    assert run_dir(file, *more, "--run_dir=runs/new", command=command) == "runs/new"


def test_a_copied_run_goes_on_in_the_copy_though_the_first_is_still_there(tmp_path):
    files = [written(tmp_path / each / "flags.cfg", tmp_path / "first", "metrics.jsonl") for each in ("first", "copy")]
    assert [run_dir(file) for file in files] == [str(file.parent) for file in files]


def test_a_run_that_was_not_moved_keeps_its_name_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "runs" / "a" / "flags.cfg", "runs/a", "checkpoints")
    assert run_dir("./runs/../runs/a/flags.cfg") == "runs/a"


@pytest.mark.parametrize("name", ["flags.cfg", "best.cfg", "mine.cfg"])
def test_a_flag_file_that_is_no_runs_own_names_the_run_directory_that_stands_in_it(tmp_path, name):
    assert run_dir(written(tmp_path / name, "runs/old")) == "runs/old"


def test_the_best_flags_of_a_moved_search_train_inside_it(tmp_path):
    file = written(tmp_path / "search" / "best.cfg", "runs/a-search/best", "search.json")
    assert run_dir(file) == str(tmp_path / "search" / "best")
