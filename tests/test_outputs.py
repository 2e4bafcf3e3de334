"""What commands do with output folders that hold a person's files, or that another process writes."""

import os
from pathlib import Path

import pytest

from tfgpt import convert, prepare, scale, train
from tfgpt.common.output_directories import working_directory


@pytest.fixture
def thesis(tmp_path) -> Path:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("years of work")
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some text to learn from.\n" * 100)
    return path


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (convert, ["--source=/nowhere", "--output={}"]),
        (prepare, ["--train_text={text}", "--output_dir={}"]),
        (train, ["--train_text={text}", "--run_dir={}"]),
        (scale, ["--train_text={text}", "--scaling_dir={}", "--flagfile=configs/scaling_quickstart.cfg"]),
    ],
)
def test_a_folder_with_a_users_files_is_refused_before_any_work(command, flags, thesis, text, capsys):
    for place in (f"{thesis}", f"{thesis}/", f"{thesis}/../thesis"):
        assert command.main([flag.format(place, text=text) for flag in flags]) == 2
        captured = capsys.readouterr()
        assert "chapter.tex" in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert {path.name: path.read_text() for path in thesis.iterdir()} == {"chapter.tex": "years of work"}
    assert sorted(os.listdir(thesis.parent)) == ["text.txt", "thesis"]


def test_a_second_training_of_one_run_ends_at_once_with_the_first_ones_name(tmp_path, text, capsys):
    with working_directory(tmp_path / "run", "run", "run_dir"):
        before = sorted(os.listdir(tmp_path / "run"))
        assert train.main([f"--train_text={text}", f"--run_dir={tmp_path / 'run'}", "--max_steps=1"]) == 2
        error = capsys.readouterr().err
        assert (
            f"--run_dir: {tmp_path / 'run'} is being written by process {os.getpid()} on {os.uname().nodename}" in error
        )
        assert error.count("\n") == 1
        assert sorted(os.listdir(tmp_path / "run")) == before
