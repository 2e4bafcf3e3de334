"""Conversations on disk hold exactly the ids, what is damaged is refused by name, and what reading them costs."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest

from tests.pipeline.test_token_shards import flip_a_byte
from tfgpt.pipeline.chat_shards import ChatShards, write_conversations
from tfgpt.pipeline.token_shards import DamagedShards
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import new_document
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

OPTIONS = {"length": 64, "repeat_system": True, "sources": {"a": "a"}}


def document(asked: str, answer: str) -> dict:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "source": "a"}


def test_ids_above_65535_are_stored_whole(tmp_path):
    # Every pair of bytes is an entry: 256 + 65,536 ids and the special tokens.
    tokenizer = Tokenizer(new_document((bytes([a]), bytes([b])) for a, b in itertools.product(range(256), repeat=2)))
    made = write_conversations([document("Hi", "ÿ" * 3)], tokenizer, tmp_path / "made", **OPTIONS)
    ids, weights = made.part(0)
    start, end = tokenizer.start_of_turn, tokenizer.end_of_turn
    text = f"{tokenizer.end_of_text}{start}user\nHi{end}\n{start}assistant\n{'ÿ' * 3}{end}"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids[weights > 0], skip_special_tokens=False) == f"{'ÿ' * 3}{end}"
    assert ids[-1] == tokenizer.end_of_turn_id > 65535


@pytest.mark.parametrize("name", ["tokens.bin", "weights.bin", "parts.jsonl", "index.npy"])
@pytest.mark.parametrize(
    "damage", [flip_a_byte, Path.unlink, lambda path: os.truncate(path, path.stat().st_size - 1)],
    ids=["flipped", "missing", "cut off"],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_named(tmp_path, name, damage):
    write_conversations([document("Hi", "Yes.")], byte_tokenizer(), tmp_path / "made", **OPTIONS)
    damage(tmp_path / "made" / name)
    with pytest.raises(DamagedShards, match=rf"{name}: missing or damaged .*; delete .*made and run again"):
        ChatShards.open(tmp_path / "made")


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"format": "tfgpt conversations", "format_version": 1}'])
def test_a_directory_without_a_manifest_of_this_version_is_refused(tmp_path, manifest):
    write_conversations([document("Hi", "Yes.")], byte_tokenizer(), tmp_path / "made", **OPTIONS)
    path = tmp_path / "made" / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    with pytest.raises(DamagedShards, match=r"manifest\.json: (no|not a) manifest of conversations"):
        ChatShards.open(tmp_path / "made")


def test_what_all_parts_say_is_read_without_opening_the_file_for_each(tmp_path):
    documents = [document(f"é{n}", "Yes.") for n in range(50)]
    made = write_conversations(documents, byte_tokenizer(), tmp_path / "made", **OPTIONS)
    opened: list[str] = []
    recording = True
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if recording and event == "open" else None)
    assert [dialogue["messages"] for dialogue in made.dialogues()] == [one["messages"] for one in documents]
    recording = False
    assert not [name for name in opened if "parts.jsonl" in name]


def test_an_exchange_that_is_too_long_is_shortened_and_the_next_one_begins_a_part(tmp_path):
    turns = [{"role": role, "content": content} for role, content in (
        ("user", "Hi"), ("assistant", "a" * 200), ("user", "And?"), ("assistant", "Yes."),
    )]  # fmt: skip
    tokenizer = byte_tokenizer()
    made = write_conversations([{"messages": turns, "source": "a"}], tokenizer, tmp_path / "made", **OPTIONS)
    learned = []
    for number in range(len(made.lengths)):
        ids, weights = made.part(number)
        assert len(ids) <= OPTIONS["length"] + 1
        learned.append(tokenizer.decode(ids[weights > 0], skip_special_tokens=False))
    assert len(learned) == 2 and set(learned[0]) == {"a"} and learned[1] == f"Yes.{tokenizer.end_of_turn}"
