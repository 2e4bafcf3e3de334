"""What a path, a folder or a glob stands for, and what of a folder is left out and said."""

import os
from pathlib import Path

import pytest

from tests.conftest import refusal
from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import open_sources
from tfgpt.corpus.sources.find_files import find_files


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(spec: Path, root: Path) -> tuple[list[str], list[str]]:
    notes: list[str] = []
    return [str(path.relative_to(root)) for path in find_files(str(spec), "train_text", notes)], notes


def test_a_link_to_a_folder_is_followed_unless_it_is_above_or_read_already(tmp_path):
    write(tmp_path, "text/a/x.txt", "text/b/y.txt", "outside/deep/z.txt")
    (tmp_path / "text/a/up").symlink_to("..")
    (tmp_path / "text/a/far").symlink_to("../../outside")
    (tmp_path / "outside/back").symlink_to("../text")
    (tmp_path / "text/0").symlink_to("b")
    (tmp_path / "text/gone.txt").symlink_to("nowhere")
    assert found(tmp_path / "text", tmp_path / "text") == (
        ["a/far/deep/z.txt", "a/x.txt", "b/y.txt"],
        [
            f"{tmp_path}/text: left out: 2 link to a folder above (a/far/back, a/up); 1 link to a folder read already "
            "(0); 1 link to nothing (gone.txt)"
        ],
    )


def test_a_glob_gives_each_file_once(tmp_path):
    write(tmp_path, "a/x.txt")
    (tmp_path / "a/loop").symlink_to(".")
    assert found(tmp_path / "**/*.txt", tmp_path) == (["a/x.txt"], [])


def test_hidden_files_media_and_pipes_of_a_folder_are_left_out(tmp_path):
    write(tmp_path, "a.txt", ".git/config", ".DS_Store", "sub/.x", "p.png", "q.JPG")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path, tmp_path) == (
        ["a.txt"],
        [
            f"{tmp_path}: left out: 3 hidden (.DS_Store, .git, sub/.x); 1 not a file (pipe); 2 picture, sound or film "
            "(p.png, q.JPG)"
        ],
    )


def test_a_folder_of_which_nothing_is_read_is_refused_with_its_content(tmp_path):
    write(tmp_path, ".hidden", "p.png")
    with pytest.raises(UserError, match=r"left out: 1 hidden \(\.hidden\); 1 picture, .* and nothing is left"):
        find_files(str(tmp_path), "train_text")


@pytest.mark.parametrize("name", ["[2024] prefs", "what?", "a*b", "[!x]"])
def test_an_existing_name_is_not_a_glob(tmp_path, name):
    write(tmp_path, f"{name}/p[1].txt", f"{name}/q.txt", "2 prefs/wrong.txt", "whats/wrong.txt", "axb/wrong.txt")
    assert found(tmp_path / name / "p[1].txt", tmp_path) == ([f"{name}/p[1].txt"], [])
    assert found(tmp_path / name, tmp_path) == ([f"{name}/p[1].txt", f"{name}/q.txt"], [])
    assert found(tmp_path / name / "*.txt", tmp_path) == ([f"{name}/p[1].txt", f"{name}/q.txt"], [])


def test_a_name_too_long_is_one_line(tmp_path):
    with pytest.raises(UserError, match="^--train_text: a+: cannot be looked up"):
        find_files("a" * 5000, "train_text")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data.csv", "a table, not text; make it JSON Lines first .*pandas.read_csv\\('data.csv'\\).to_json"),
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


def test_a_datasets_card_is_left_out(tmp_path):
    # huggingface/datasets#2877: a data set's folder as it lies on the hub.
    write(tmp_path, "a.jsonl", "dataset_infos.json", "guide/README.md")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    assert found(tmp_path, tmp_path) == (
        ["a.jsonl", "guide/README.md"],
        [f"{tmp_path}: left out: 2 description of the data (README.md, dataset_infos.json)"],
    )


def test_globs_are_sorted_and_may_go_down(tmp_path):
    write(tmp_path, "b.txt", "a.txt", "c/d/e.txt", "c/f.md")
    assert found(tmp_path / "*.txt", tmp_path)[0] == ["a.txt", "b.txt"]
    assert found(tmp_path / "**/*.txt", tmp_path)[0] == ["a.txt", "b.txt", "c/d/e.txt"]
    assert found(tmp_path / "*", tmp_path)[0] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("missing.txt", "missing.txt: no such file or folder; the folder {tmp_path} has empty"),
        ("*.md", "*.md: matches no file"),
        ("empty", "empty: no file in this folder"),
        ("e*", "e*: matches folders only; add /** to take the files in them"),
    ],
)
def test_a_spec_without_files_is_refused_with_its_flag(tmp_path, spec, expected):
    (tmp_path / "empty").mkdir()
    line = refusal(open_sources, [str(tmp_path / spec)], "validation_text")
    assert line == f"--validation_text: {tmp_path}/{expected.format(tmp_path=tmp_path)}"


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        open_sources([str(tmp_path / "pipe")])
