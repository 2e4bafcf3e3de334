"""Claims about lines that refuse a name: the nearest ones stand in the same line."""

import pytest

from tests.conftest import ROOT
from tfgpt.__main__ import main
from tfgpt.common.did_you_mean import did_you_mean, no_such_file
from tfgpt.train import COMMAND as TRAIN


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--preset=tinny", "--preset: 'tinny' is not one of tiny, mini"),
        ("--train_text=sample:shakespear", "sample:shakespear: no such sample; did you mean sample:shakespeare?"),
        ("--train_text=READMEE.md", "--train_text: READMEE.md: no such file or folder; did you mean README.md?"),
        ("--flagfile=configs/quickstart.cgf", "--flagfile: configs/quickstart.cgf: is not a file; did you mean "
         "configs/quickstart.cfg?"),
    ],
)  # fmt: skip
def test_train_names_what_was_meant(argument, line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    if argument.startswith("--train_text"):
        from tfgpt.prepare import COMMAND as PREPARE

        assert PREPARE.run([argument, f"--cache_dir={tmp_path}"]) == 2
    else:
        assert TRAIN.run([argument]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_a_misspelled_command_is_named_with_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "tfgpt: trian: no such command; did you mean train?\n"
    assert main(["xyz"]) == 2
    assert "no such command; there are prepare, train" in capsys.readouterr().err


def test_a_missing_file_is_named_with_what_its_folder_has(tmp_path):
    for name in ("notes.txt", "book.md", ".hidden"):
        (tmp_path / name).touch()
    assert no_such_file(tmp_path / "note.txt").endswith(f"no such file; did you mean {tmp_path}/notes.txt?")
    assert no_such_file(tmp_path / "xyz").endswith(f"no such file; the folder {tmp_path} has book.md, notes.txt")
    deep = no_such_file(tmp_path / "boks" / "x" / "y.txt")
    assert deep.endswith(f"(there is no {tmp_path}/boks); the folder {tmp_path} has book.md, notes.txt")
    (tmp_path / "empty").mkdir()
    assert no_such_file(tmp_path / "empty" / "x").endswith("empty is empty")
    for number in range(20):
        (tmp_path / f"{number:02}").touch()
    assert no_such_file(tmp_path / "xyz").endswith("00, 01, 02, 03, 04, 05, 06, 07 and 15 more")


def test_what_is_far_from_all_names_gets_none():
    assert did_you_mean("xyz", ["train", "tune"]) == ""
    assert did_you_mean("TRAIN", ["train"]) == "; did you mean train?"
