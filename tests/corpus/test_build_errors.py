"""A corpus that cannot be used is refused with what was read of it, and which of that is the trouble."""

import pytest

from tests.conftest import refusal
from tests.corpus.conftest import write_records
from tfgpt.corpus.build import build_documents

EXCHANGE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture
def build(corpus):
    return lambda *train_text, flag="train_text", **options: build_documents(corpus(*train_text, **options), flag)


def test_copies_of_one_conversation_are_refused_with_their_number(tmp_path, build):
    path = write_records(tmp_path / "a.jsonl", *[{"messages": EXCHANGE}] * 60)
    assert refusal(build, path) == (
        "--train_text: 1 document is left, which cannot be on both sides: 60 documents read, 59 left out (59 "
        "duplicate); 0 documents (0 bytes) to train on, 1 document (8 bytes) held out; give more text that differs, or "
        "--validation_text"
    )


def test_a_split_that_leaves_a_side_empty_is_named_with_what_was_read(tmp_path, build):
    path = write_records(tmp_path / "a.jsonl", *({"text": letter} for letter in "aabc"))
    assert refusal(build, path, split="hash", validation_fraction=0.0001) == (
        "--train_text: --split=hash with --validation_fraction=0.0001 leaves nothing to hold out: 4 documents read, "
        "1 left out (1 duplicate); 3 documents (3 bytes) to train on, 0 documents (0 bytes) held out; give more text, "
        "another fraction or split, or --validation_text"
    )


def test_the_flag_that_the_text_was_given_with_is_the_one_named(tmp_path, build):
    missing = tmp_path / "missing.txt"
    assert refusal(build, missing, flag="text").startswith(f"--text: {missing}: no such file or folder")


def test_a_record_that_cannot_be_read_is_left_out_and_reported(tmp_path, build, capfd):
    good = ({"text": f"document {number}"} for number in range(9))
    path = write_records(tmp_path / "a.jsonl", *good, '{"text": "cut', {"text": 7})
    for _ in range(2):  # the second time from the cache
        documents = build(path, validation_fraction=0.0)
        assert documents.num_documents("train") == 9
        assert (
            f"{path}: 2 records are left out of 11 ({path}:10: not JSON (Unterminated string starting at column 10); "
            f"{path}:11: 'text' is a number, not a string); --strict stops there instead"
        ) in capfd.readouterr().err.splitlines()
    assert documents.manifest["dropped"] == {"that cannot be read": 2}
    assert "- that cannot be read: 2" in documents.card.read_text()


@pytest.mark.parametrize("cached", [False, True])
def test_strict_stops_at_a_record_that_cannot_be_read(tmp_path, build, cached):
    path = write_records(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"}, {"text": None})
    if cached:
        build(path, validation_fraction=0.0)
    assert refusal(build, path, validation_fraction=0.0, strict=True) == f"{path}:3: 'text' is null, not a string"


def test_files_of_a_folder_that_are_left_out_are_reported_each_time(tmp_path, build, capfd):
    (tmp_path / "text").mkdir()
    for name in ("a.txt", ".hidden", "b.png"):
        (tmp_path / "text" / name).write_text("words")
    for _ in range(2):
        build(tmp_path / "text", validation_fraction=0.0)
        assert (
            f"{tmp_path}/text: left out: 1 hidden (.hidden); 1 picture, sound or film (b.png)"
            in capfd.readouterr().err.splitlines()
        )


def test_text_that_is_all_held_out_is_refused_with_numbers(tmp_path, build):
    path = write_records(tmp_path / "a.jsonl", *({"text": letter} for letter in "abc"))
    assert refusal(build, path, validation_text=(str(path),)) == (
        "--train_text: no document is left to train on: 6 documents read, 3 left out (3 also in --validation_text); "
        "0 documents (0 bytes) to train on, 3 documents (3 bytes) held out; give other text than held out"
    )
