"""What a path, a folder or a glob stands for, and what of a folder is left out and said."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import open_sources
from tfgpt.corpus.sources.find_files import find_files


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(spec: Path, root: Path) -> tuple[list[str], list[str]]:
    """The files that a spec stands for, below a root, and the notes."""
    notes: list[str] = []
    return [str(path.relative_to(root)) for path in find_files(str(spec), "train_text", notes)], notes


def test_a_link_to_a_folder_is_followed(tmp_path):
    write(tmp_path, "elsewhere/b.txt", "elsewhere/deep/c.txt", "text/a.txt")
    (tmp_path / "text" / "link").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "text", tmp_path) == (["text/a.txt", "text/link/b.txt", "text/link/deep/c.txt"], [])


def test_links_that_lead_back_are_noticed_and_said(tmp_path):
    write(tmp_path, "text/a/x.txt", "text/b/y.txt", "outside/z.txt")
    (tmp_path / "text/a/up").symlink_to("..")
    (tmp_path / "text/a/far").symlink_to("../../outside")
    (tmp_path / "outside/back").symlink_to("../text")
    (tmp_path / "text/0").symlink_to("b")
    (tmp_path / "text/gone.txt").symlink_to("nowhere")
    assert found(tmp_path / "text", tmp_path / "text") == (
        ["a/far/z.txt", "a/x.txt", "b/y.txt"],
        [
            f"{tmp_path}/text: left out: 2 link to a folder above (a/far/back, a/up); 1 link to a folder read already "
            "(0); 1 link to nothing (gone.txt)"
        ],
    )


def test_a_glob_gives_each_file_once_whatever_links_lead_to_it(tmp_path):
    write(tmp_path, "a/x.txt")
    (tmp_path / "a/loop").symlink_to(".")
    assert found(tmp_path / "**/*.txt", tmp_path) == (["a/x.txt"], [])


def test_what_of_a_folder_is_not_read_is_said(tmp_path):
    write(tmp_path, "a.txt", ".git/config", ".DS_Store", "sub/.x", "p.png", "q.JPG")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path, tmp_path) == (
        ["a.txt"],
        [
            f"{tmp_path}: left out: 3 hidden (.DS_Store, .git, sub/.x); 1 not a file (pipe); 2 picture, sound or film "
            "(p.png, q.JPG)"
        ],
    )


def test_a_folder_of_which_nothing_is_read_says_what_it_holds(tmp_path):
    write(tmp_path, ".hidden", "p.png")
    with pytest.raises(UserError, match=r"left out: 1 hidden \(\.hidden\); 1 picture, .* and nothing is left"):
        find_files(str(tmp_path), "train_text")


@pytest.mark.parametrize("name", ["[2024] prefs", "what?", "a*b", "[!x]"])
def test_a_name_that_exists_is_that_file_or_folder_whatever_is_in_it(tmp_path, name):
    write(tmp_path, f"{name}/p[1].txt", f"{name}/q.txt", "2 prefs/wrong.txt", "whats/wrong.txt", "axb/wrong.txt")
    assert found(tmp_path / name / "p[1].txt", tmp_path) == ([f"{name}/p[1].txt"], [])
    assert found(tmp_path / name, tmp_path) == ([f"{name}/p[1].txt", f"{name}/q.txt"], [])
    assert found(tmp_path / name / "*.txt", tmp_path) == ([f"{name}/p[1].txt", f"{name}/q.txt"], [])


def test_a_name_too_long_has_its_line(tmp_path):
    with pytest.raises(UserError, match="^--train_text: a+: cannot be looked up"):
        find_files("a" * 5000, "train_text")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "data.csv",
            "a table, not text; make it JSON Lines first .*pandas.read_csv\\('data.csv'\\).to_json",
        ),
        ("data.tsv.gz", "a table, not text; .*read_table"),
        ("data.xlsx", "a table, not text; .*read_excel"),
        ("data.parquet", "a table, not text; .*read_parquet"),
        ("page.html", "a web page, not text; take the text out first, .*trafilatura .or, .*name it page.html.txt"),
        ("paper.PDF", "a PDF document, not text; .*pdftotext"),
        ("letter.docx", "a Word document, not text; .*pandoc"),
        ("all.tar.gz", "an archive; unpack it and give the folder"),
        ("all.txt.xz", "compressed in a way that is not read here"),
        ("photo.png", "a picture, a sound or a film, not text"),
    ],
)
@pytest.mark.parametrize("way", ["file", "folder", "glob"])
def test_other_formats_are_refused_by_name_with_what_to_do(tmp_path, name, expected, way):
    write(tmp_path, name, "a.txt")
    spec = {"file": tmp_path / name, "folder": tmp_path, "glob": tmp_path / "*"}[way]
    if name == "photo.png" and way == "folder":
        assert found(spec, tmp_path)[0] == ["a.txt"]
        return
    with pytest.raises(UserError, match=f"^--train_text: {tmp_path}/{name}: {expected}"):
        open_sources([str(spec)])


RECORDS = [{"instruction": "Do", "input": "", "output": "Done"}, {"text": "a"}]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=1),
        "\ufeff\n" + json.dumps(RECORDS),
        "".join(f"{json.dumps(record)}\n" for record in RECORDS),
    ],
    ids=["a line", "indented", "after a mark", "JSON Lines"],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl"])
def test_a_list_of_records_is_read_as_records(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    first, second = open_sources([str(path)])[0].documents()
    assert [message["content"] for message in first["messages"]] == ["Do", "Done"]
    assert second["text"] == "a"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[\n{"text": "a"},\n{"text": 7},\n{"text": "b"}]', ":3: 'text' is a number, not a string"),
        ('[\n{"text": "a"},\n{"text": }]', ":3: not JSON (Expecting value at column 10)"),
        ('[\n{"text": "a"}\n{"text": "b"}]', ":3: not JSON (an item is followed by neither a comma nor the closing"),
        ('[\n{"text": "a"}\n', ":3: not JSON (an item is followed by neither a comma nor the closing bracket)"),
        ('[{"text": "a"}]\n[{"text": "b"}]', ":2: not JSON (there is more after the list's closing bracket)"),
        ('{\n "text": "a"\n}', ":1: not JSON (an object that spans several lines; put each record on"),
        ("[]", ": the file is empty"),
    ],
)
def test_a_list_that_cannot_be_read_is_named_by_its_line(tmp_path, content, expected):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        list(open_sources([str(path)], strict=True)[0].documents())
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_utf16_without_a_mark_is_no_text_full_of_zeros(tmp_path):
    for order in ("le", "be"):
        (tmp_path / "a.txt").write_bytes("plain words".encode(f"utf-16-{order}"))
        with pytest.raises(UserError, match=f"iconv -f UTF-16{order.upper()} -t UTF-8"):
            list(open_sources([str(tmp_path / "a.txt")])[0].documents())


def test_numbers_are_ids_as_tables_write_them(tmp_path):
    ids = [7, 7.0, 7.5, float("nan"), "x", None]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{number}", "id": one}) + "\n" for number, one in enumerate(ids))
    )
    found_ids = [document["id"] for document in open_sources([str(tmp_path / "a.jsonl")])[0].documents()]
    assert found_ids[:3] == ["7", "7", "7.5"]
    assert found_ids[4] == "x"
    assert len(found_ids[3]) == len(found_ids[5]) == 32


def test_a_data_sets_card_is_no_text_of_it(tmp_path):
    # huggingface/datasets#2877: a data set's folder as it lies on the hub.
    write(tmp_path, "a.jsonl", "dataset_infos.json", "guide/README.md")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    assert found(tmp_path, tmp_path) == (
        ["a.jsonl", "guide/README.md"],
        [f"{tmp_path}: left out: 2 description of the data (README.md, dataset_infos.json)"],
    )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.json.zst"])
def test_a_git_lfs_pointer_is_no_text(tmp_path, name):
    # benedekrozemberczki/datasets#10: learned as a text, or called no JSON, no gzip.
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    [source] = open_sources([str(path)], "train_text")
    with pytest.raises(UserError, match=f"{name}: is a git-lfs pointer, not the file itself"):
        list(source.documents())
