"""Claims about writing beside and renaming."""

from __future__ import annotations

import errno

import pytest

from tfgpt.common.errors import RunError, UserError
from tfgpt.common.files import clear_write_errors, directory_written_beside, read_json, write_text, written_beside


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), written_beside(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    with directory_written_beside(path) as temporary:
        (temporary / "one").write_text("1")
    with pytest.raises(ZeroDivisionError), directory_written_beside(path) as temporary:
        (temporary / "two").write_text("2")
        raise ZeroDivisionError
    assert [entry.name for entry in path.iterdir()] == ["one"]
    with directory_written_beside(path) as temporary:
        (temporary / "two").write_text("2")
    assert [entry.name for entry in path.iterdir()] == ["two"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, RunError), (errno.EACCES, UserError), (errno.EROFS, UserError)]
)
def test_a_full_disk_and_a_closed_door_are_one_line_each(number, kind):
    with pytest.raises(kind, match="somewhere"), clear_write_errors("somewhere"):
        raise OSError(number, "no")


def test_a_file_in_the_way_of_a_directory_is_the_users_to_move(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot write here"):
        write_text(tmp_path / "runs" / "x", "text")


def test_broken_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(tmp_path / "x.json")
