"""Pairs and prompts in files: which files, which records are left out, and what a split that cannot be says."""

import gzip
import json
from pathlib import Path

import pytest

from tfgpt.common.errors import UserError
from tfgpt.corpus.config import CorpusConfig
from tfgpt.training.objectives.prompt_records import parse_answer, read_records, read_sides

PREFERENCES = [{"prompt": f"Say {number}", "chosen": "yes", "rejected": "no"} for number in range(3)]


def write(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{value if isinstance(value, str) else json.dumps(value)}\n" for value in values).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def corpus(path: Path, **options) -> CorpusConfig:
    return CorpusConfig(train_text=(str(path),), **options)


def test_three_records_of_which_none_is_held_out_are_told_so_and_what_helps(tmp_path):
    path = write(tmp_path / "prefs3.jsonl", *PREFERENCES)
    with pytest.raises(UserError) as caught:
        read_sides(corpus(path))
    words, advised = str(caught.value).rsplit("=", 1)
    assert words == (
        "--validation_fraction: 0.05 leaves none of 3 records held out (3 different prompts; a hash of the prompt says "
        "on which side it is); give more records, --validation_text, or --validation_fraction"
    )
    train, validation = read_sides(corpus(path, validation_fraction=float(advised)))
    assert train and validation


def test_records_of_one_prompt_cannot_be_divided(tmp_path):
    path = write(tmp_path / "a.jsonl", *[PREFERENCES[0]] * 3)
    with pytest.raises(UserError, match=r"none of 3 records held out \(1 different prompt; .* --validation_text$"):
        read_sides(corpus(path))


@pytest.mark.parametrize("name", ["[2024] prefs/p.jsonl", "what?.jsonl", "p.jsonl.gz", "p.ndjson", "list.json"])
def test_a_file_is_read_whatever_its_name_and_form(tmp_path, name):
    values = [json.dumps(PREFERENCES, indent=1)] if name == "list.json" else PREFERENCES
    path = write(tmp_path / name, *values)
    assert [record.prompt for record in read_records([str(path)], "train_text")] == ["Say 0", "Say 1", "Say 2"]


def test_of_a_folder_records_are_read_and_the_rest_is_said(tmp_path, capfd):
    write(tmp_path / "a/p.jsonl.gz", PREFERENCES[0])
    write(tmp_path / "q.jsonl", PREFERENCES[1])
    write(tmp_path / "notes.txt", "words")
    assert [record.prompt for record in read_records([str(tmp_path)], "train_text")] == ["Say 0", "Say 1"]
    assert capfd.readouterr().err == f"{tmp_path}: left out: 1 of another kind (notes.txt)\n"


def test_an_odd_record_is_left_out_and_said_unless_strict(tmp_path, capfd):
    path = write(tmp_path / "a.jsonl", *PREFERENCES, {"prompt": "Say 4", "chosen": "yes"})

    def check(record):
        parse_answer(record, "rejected")

    assert len(list(read_records([str(path)], "train_text", False, check))) == 3
    problem = f'{path}:4: "rejected" should be a text, or a list of one message'
    assert f"{path}: 1 record is left out of 4 ({problem})" in capfd.readouterr().err
    with pytest.raises(UserError, match=problem.replace("\\", ".")):
        list(read_records([str(path)], "train_text", True, check))


def test_copies_that_programs_leave_in_a_folder_are_not_read_and_a_byte_order_mark_is_skipped(tmp_path, capfd):
    # huggingface/datasets#4115 and #8241: Jupyter's and macOS's copies; what Windows' editors begin a file with.
    path = write(tmp_path / "p.jsonl", *PREFERENCES)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    write(tmp_path / ".ipynb_checkpoints/p-checkpoint.jsonl", *PREFERENCES)
    write(tmp_path / "._p.jsonl", *PREFERENCES)
    assert [record.prompt for record in read_records([str(tmp_path)], "train_text")] == ["Say 0", "Say 1", "Say 2"]
    assert capfd.readouterr().err == f"{tmp_path}: left out: 2 hidden (._p.jsonl, .ipynb_checkpoints)\n"
