"""Claims about writing beside and renaming."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from tfgpt.common import atomic_files
from tfgpt.common.atomic_files import (
    atomic_directory,
    atomic_write,
    read_json,
    readable_write_errors,
    recover_leftovers,
    write_text,
)
from tfgpt.common.errors import RunError, UserError


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_directory_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    with atomic_directory(path) as temporary:
        (temporary / "one").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_directory(path) as temporary:
        (temporary / "two").write_text("2")
        raise ZeroDivisionError
    assert [entry.name for entry in path.iterdir()] == ["one"]
    with atomic_directory(path) as temporary:
        (temporary / "two").write_text("2")
    assert [entry.name for entry in path.iterdir()] == ["two"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@contextlib.contextmanager
def written(path: Path, whole_directory: bool):
    """The one file that is written, of a file or of a directory, before the rename."""
    with atomic_directory(path) if whole_directory else atomic_write(path) as temporary:
        if whole_directory:
            (temporary / "deep").mkdir()
        file = temporary / "deep" / "weights" if whole_directory else temporary
        file.write_text("new")
        yield file


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no directories")
@pytest.mark.parametrize("whole_directory", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_content_is_on_the_disk_before_the_rename_and_the_rename_before_it_is_reported(
    tmp_path, monkeypatch, whole_directory, replaced
):
    path = tmp_path / "out"
    if replaced:
        with written(path, whole_directory):
            pass
    done: list[int | str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_ino))
    for name in ("rename", "replace"):

        def renamed(source, target, call=getattr(os, name)):
            call(source, target)
            done.append(Path(target).name)

        monkeypatch.setattr(os, name, renamed)
    with written(path, whole_directory) as file:
        inode = file.stat().st_ino
    assert done.count("out") == 1
    assert inode in done[: done.index("out")]
    assert tmp_path.stat().st_ino in done[done.index("out") + 1 :]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("whole_directory", [False, True])
def test_results_have_the_permissions_of_the_umask(tmp_path, whole_directory):
    before = os.umask(0o027)  # The group may read, others nothing.
    try:
        with written(tmp_path / "out", whole_directory):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == (0o750 if whole_directory else 0o640)


def test_an_old_directory_whose_replacement_cannot_be_renamed_is_put_back(tmp_path, monkeypatch):
    path, rename = tmp_path / "model", os.rename
    with written(path, True):
        pass

    def full(source, target):
        if Path(target).name == "model" and Path(source).suffix == ".tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(atomic_files.os, "rename", full)
    with pytest.raises(RunError, match="the disk is full"), atomic_directory(path) as temporary:
        (temporary / "two").write_text("2")
    assert (path / "deep" / "weights").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_directory_set_aside_by_a_killed_replacement_is_put_back(tmp_path):
    (tmp_path / ".model.abcdef12.old").mkdir()
    (tmp_path / ".model.abcdef12.old" / "one").write_text("1")
    (tmp_path / ".model.zyxwvu98.tmp").mkdir()
    (tmp_path / ".adapter.abcdef12.old").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "new").write_text("2")
    (tmp_path / ".mine.old").mkdir()  # not ours
    recover_leftovers(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".mine.old", "adapter", "model"]
    assert (tmp_path / "model" / "one").read_text() == "1"
    assert (tmp_path / "adapter" / "new").read_text() == "2"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, RunError), (errno.EACCES, UserError), (errno.EROFS, UserError)]
)
def test_a_full_disk_and_a_closed_door_are_one_line_each(number, kind):
    with pytest.raises(kind, match="somewhere"), readable_write_errors("somewhere"):
        raise OSError(number, "no")


def test_a_file_in_the_way_of_a_directory_is_the_users_to_move(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot write here"):
        write_text(tmp_path / "runs" / "x", "text")


def test_broken_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_a_link_to_a_file_stays_and_the_file_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "chats.jsonl").write_text("old")
    (tmp_path / "chats.jsonl").symlink_to(tmp_path / "disk" / "chats.jsonl")
    write_text(tmp_path / "chats.jsonl", "new")
    assert (tmp_path / "chats.jsonl").is_symlink()
    assert (tmp_path / "disk" / "chats.jsonl").read_text() == "new"
