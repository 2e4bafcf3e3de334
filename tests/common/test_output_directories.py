"""The guard of output directories: what is a person's stays, what is replaced is replaced as a whole."""

import json
import os
from pathlib import Path

import pytest

from tfgpt.common import output_directories
from tfgpt.common.atomic_files import put_back, replace_directory
from tfgpt.common.errors import UserError
from tfgpt.common.locks import DirectoryInUse
from tfgpt.common.output_directories import check_replaceable, result_directory, working_directory


def write(path: Path, text: str = "new") -> None:
    with result_directory(path, "model directory", "output") as temporary:
        (temporary / "config.json").write_text(text, encoding="utf-8")


def content(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_a_new_or_empty_folder_or_an_earlier_result_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "deep/er", "slash/"):
        write(tmp_path / name, "first")
        write(tmp_path / name, "second")
        assert (tmp_path / name / "config.json").read_text() == "second"
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".old")]


@pytest.mark.parametrize("name", ["thesis.txt", "config.json", ".git"])
def test_a_folder_with_foreign_files_is_refused_and_untouched(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    before = content(tmp_path)
    with pytest.raises(UserError, match=f"--output: .*out holds files .*{name}.*--overwrite"):
        write(tmp_path / "out")
    assert content(tmp_path) == before


def test_a_file_added_to_an_earlier_result_is_kept(tmp_path):
    write(tmp_path / "out", "first")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        write(tmp_path / "out", "second")
    assert content(tmp_path / "out")["config.json"] == "first" and content(tmp_path / "out")["notes.txt"] == "mine"


def test_files_of_file_managers_do_not_count(tmp_path):
    write(tmp_path / "out", "first")
    (tmp_path / "out" / ".DS_Store").write_text("icons")
    write(tmp_path / "out", "second")
    assert sorted(content(tmp_path / "out")) == ["config.json", "tfgpt.json"]


def test_a_file_added_while_the_result_is_made_is_kept(tmp_path):
    write(tmp_path / "out", "first")
    with pytest.raises(UserError, match=r"notes\.txt"):
        with result_directory(tmp_path / "out", "model directory", "output") as temporary:
            (temporary / "config.json").write_text("second")
            (tmp_path / "out" / "notes.txt").write_text("mine")
    assert content(tmp_path / "out")["config.json"] == "first"


def test_overwrite_replaces_a_users_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("mine")
    with result_directory(tmp_path / "out", "model directory", "output", overwrite=True) as temporary:
        (temporary / "config.json").write_text("new")
    assert sorted(content(tmp_path / "out")) == ["config.json", "tfgpt.json"]


def test_another_kind_of_result_is_refused(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(UserError, match="is a model directory, not a adapter|is a model directory, not"):
        check_replaceable(tmp_path / "out", "adapter", "output")


def test_the_current_folder_and_those_around_it_are_refused(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    for place in (".", "..", "", "./", str(tmp_path), "/"):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="--output"):
                check_replaceable(place, "model directory", "output", overwrite)
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "config.json").read_text() == "new"
    (tmp_path / "disk" / "mine").write_text("mine")
    with pytest.raises(UserError, match="mine"):
        write(tmp_path / "link")


def test_a_file_and_a_mount_point_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "file")
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mount")
    with pytest.raises(UserError, match="mount point"):
        write(tmp_path / "mount")


def test_a_failure_leaves_the_earlier_result(tmp_path):
    write(tmp_path / "out", "first")
    with pytest.raises(ZeroDivisionError):
        with result_directory(tmp_path / "out", "model directory", "output") as temporary:
            (temporary / "config.json").write_text("second")
            raise ZeroDivisionError
    assert content(tmp_path / "out")["config.json"] == "first" and os.listdir(tmp_path) != []


def test_a_result_interrupted_between_two_renames_is_put_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "first")
    (tmp_path / "new").mkdir()
    rename = os.rename

    def cut(source, target):
        if Path(target).name == "out":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        replace_directory(tmp_path / "new", tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    put_back(tmp_path / "out")
    assert content(tmp_path / "out")["config.json"] == "first"


def test_two_writers_of_one_result(tmp_path):
    with result_directory(tmp_path / "out", "model directory", "output") as temporary:
        (temporary / "config.json").write_text("first")
        with pytest.raises(DirectoryInUse, match=rf"--output: .*out is being written by process {os.getpid()} on"):
            write(tmp_path / "out")
    assert content(tmp_path / "out")["config.json"] == "first"


def test_a_working_directory_keeps_a_users_files(tmp_path):
    for _ in range(2):
        with working_directory(tmp_path / "run", "run", "run_dir") as directory:
            (directory / "metrics.jsonl").write_text("{}")
        (directory / "notes.txt").write_text("mine")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_working_directory_of_other_files_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("mine")
    with pytest.raises(UserError, match=r"--run_dir: .*thesis holds other files \(text.tex\) and no run"):
        with working_directory(tmp_path / "thesis", "run", "run_dir"):
            pass
    assert os.listdir(tmp_path / "thesis") == ["text.tex"]


def test_another_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(output_directories.FORMATS, "run", 2)
    with working_directory(tmp_path / "run", "run", "run_dir"):
        pass
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"run: is a run of format 2, and this tfgpt knows format 1"):
        with working_directory(tmp_path / "run", "run", "run_dir"):
            pass
    assert json.loads((tmp_path / "run" / "tfgpt.json").read_text())["format"] == 2


def test_a_model_directory_of_another_format_is_refused_by_name(tmp_path):
    from tfgpt.model.checkpoints.huggingface import load_config

    write(tmp_path / "model", "{}")
    (tmp_path / "model" / "tfgpt.json").write_text('{"kind": "model directory", "format": 7}')
    with pytest.raises(UserError, match="model: is a model directory of format 7, and this tfgpt knows format 1"):
        load_config(tmp_path / "model")
