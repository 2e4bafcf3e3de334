"""Conversations on disk hold exactly the ids, and what a run held out is found again, absent, or named as damaged."""

import itertools
import shutil
import sys

import numpy as np
import pytest

from tests.conftest import chat
from tfgpt.pipeline.chat_shards import ConversationSplitter, open_held_out, write_chat_shards
from tfgpt.pipeline.manifest import DamagedShards
from tfgpt.pipeline.token_shards import write_token_shards
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import new_document
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

OPTIONS = {"length": 64, "repeat_system": True, "sources": {"a": "a"}}


def document(asked: str, answer: str) -> dict:
    return {"messages": chat(asked, answer), "source": "a"}


def test_ids_above_65535_are_stored_whole(tmp_path):
    # Every pair of bytes is an entry: 256 + 65,536 ids and the special tokens.
    tokenizer = Tokenizer(new_document((bytes([a]), bytes([b])) for a, b in itertools.product(range(256), repeat=2)))
    made = write_chat_shards([document("Hi", "ÿ" * 3)], tokenizer, tmp_path / "chat", **OPTIONS)
    ids, weights = made.part(0)
    start, end = tokenizer.start_of_turn, tokenizer.end_of_turn
    text = f"{tokenizer.end_of_text}{start}user\nHi{end}\n{start}assistant\n{'ÿ' * 3}{end}"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids[weights > 0], skip_special_tokens=False) == f"{'ÿ' * 3}{end}"
    assert ids[-1] == tokenizer.end_of_turn_id > 65535
    shards = write_token_shards([{"text": "ÿ" * 3 + "\x00"}], tokenizer, tmp_path / "tokens")
    assert shards.tokens.dtype == np.uint32 and shards.tokens[0] == tokenizer.end_of_text_id > 65535
    np.testing.assert_array_equal(shards.tokens[1:-1], tokenizer.encode("ÿ" * 3 + "\x00"))


def test_what_all_parts_say_is_read_without_opening_the_file_for_each(tmp_path):
    documents = [document(f"é{n}", "Yes.") for n in range(50)]
    made = write_chat_shards(documents, byte_tokenizer(), tmp_path / "made", **OPTIONS)
    opened: list[str] = []
    recording = True
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if recording and event == "open" else None)
    assert [dialogue["messages"] for dialogue in map(made.dialogue, range(50))] == [
        one["messages"] for one in documents
    ]
    recording = False
    assert not [name for name in opened if "parts.jsonl" in name]


@pytest.fixture(params=["text", "conversations"])
def kept(request, tmp_path):
    """The directory of held-out tokens, the tokenizer and what training.json says of them."""
    tokenizer = byte_tokenizer()
    directory = tmp_path / "kept"
    if request.param == "text":
        opened = write_token_shards([{"text": "held out"}], tokenizer, directory)
    else:
        opened = write_chat_shards([document("Hi", "Hello.")], tokenizer, directory, **OPTIONS)
    return directory, tokenizer, {"directory": str(directory), "fingerprint": opened.fingerprint}


def test_what_is_whole_is_found(kept):
    directory, tokenizer, held_out = kept
    assert open_held_out(held_out, tokenizer).directory == directory


def test_what_is_gone_or_another_is_absent(kept):
    directory, tokenizer, held_out = kept
    assert open_held_out({}, tokenizer) is None
    assert open_held_out({**held_out, "fingerprint": "x"}, tokenizer) is None
    shutil.rmtree(directory)
    assert open_held_out(held_out, tokenizer) is None


def test_held_out_data_that_are_damaged_are_named(kept):
    directory, tokenizer, held_out = kept
    path = next(directory.glob("tokens*.bin"))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DamagedShards, match=path.name):
        open_held_out(held_out, tokenizer)
    (directory / "manifest.json").write_text("{")
    with pytest.raises(DamagedShards, match=r"manifest\.json"):
        open_held_out(held_out, tokenizer)


def test_an_exchange_that_is_too_long_is_shortened_and_the_next_one_begins_a_part(tmp_path):
    tokenizer = byte_tokenizer()
    talk = {"messages": chat("Hi", "a" * 200, "And?", "Yes."), "source": "a"}
    made = write_chat_shards([talk], tokenizer, tmp_path / "made", **OPTIONS)
    learned = []
    for number in range(len(made.lengths)):
        ids, weights = made.part(number)
        assert len(ids) <= OPTIONS["length"] + 1
        learned.append(tokenizer.decode(ids[weights > 0], skip_special_tokens=False))
    assert len(learned) == 2 and set(learned[0]) == {"a"} and learned[1] == f"Yes.{tokenizer.end_of_turn}"


def test_parts_fit_rows_of_every_length_and_have_as_many_exchanges_as_fit():
    turns = [turn for n in range(6) for turn in document(f"Question {n}?", "y" * n)["messages"]]
    for length in range(60, 200, 3):
        splitter = ConversationSplitter(byte_tokenizer(), length, repeat_system=True)
        parts = list(splitter.split(turns))
        assert max(len(part.ids) for part in parts) <= length + 1
        for part, following in itertools.pairwise(parts):
            longer = [*part.messages, *following.messages[:2]]
            [whole, *_] = ConversationSplitter(byte_tokenizer(), 9999, repeat_system=True).split(longer)
            assert len(whole.ids) > length + 1
