"""Claims about writing beside and renaming."""

from __future__ import annotations

import errno

import pytest

from tfgpt.common.errors import RunError, UserError
from tfgpt.common.files import (
    clear_write_errors,
    directory_written_beside,
    read_json,
    recover_leftovers,
    write_text,
    written_beside,
)


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


def test_what_a_killed_replacement_set_aside_is_put_back_where_nothing_took_its_place(tmp_path):
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
