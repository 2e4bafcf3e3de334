"""Token shards hold exactly the documents' ids, and what is damaged is refused by name."""

import os
import resource

import numpy as np
import pytest

from tests.conftest import chat
from tfgpt.common.errors import RunError, UserError
from tfgpt.pipeline import token_shards as shards_module
from tfgpt.pipeline.manifest import DamagedShards
from tfgpt.pipeline.token_shards import TokenShards, write_token_shards
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

TEXTS = [{"text": "Hé!"}, {"text": "ab"}, {"text": ""}, {"text": "the end\n"}]
DIALOGUE = {"messages": chat("Hi", "Hello <|im_end|>")}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


def test_the_stream_begins_with_end_of_text_and_each_document_ends_with_it(tmp_path, tokenizer):
    shards = write_token_shards(TEXTS, tokenizer, tmp_path / "shards")
    end = tokenizer.end_of_text_id
    by_hand = [end, *"Hé!".encode(), end, *b"ab", end, *b"the end\n", end]
    np.testing.assert_array_equal(shards.tokens[:], by_hand)
    # Without our code: the file is nothing but little-endian uint16.
    np.testing.assert_array_equal(np.fromfile(tmp_path / "shards" / "tokens-00000.bin", "<u2"), by_hand)
    assert (shards.num_tokens, shards.num_bytes, shards.num_documents) == (len(by_hand), 4 + 2 + 8, 3)
    assert shards.tokenizer_fingerprint == tokenizer.fingerprint


def test_dialogues_are_the_chat_template_followed_by_end_of_text(tmp_path, tokenizer):
    shards = write_token_shards([DIALOGUE, {"text": "ab"}], tokenizer, tmp_path / "shards", store_weights=True)
    ids, weights = encode_messages(tokenizer, DIALOGUE["messages"])
    end = tokenizer.end_of_text_id
    assert ids[0] == end  # the template's own; it is not written twice
    np.testing.assert_array_equal(shards.tokens[:], [*ids, end, *b"ab", end])
    # All of a text counts; of a dialogue only what the assistant says, and not the end-of-text behind it.
    np.testing.assert_array_equal(shards.weights[1:], [*weights[1:], 0, 1, 1, 1])
    assert weights.sum() == len("Hello <|im_end|>") + 1
    assert write_token_shards([DIALOGUE], tokenizer, tmp_path / "plain").weights is None


def test_dialogues_that_the_template_refuses_are_left_out_and_counted(tmp_path, tokenizer):
    with_tools = {**DIALOGUE, "tools": [{"type": "function", "function": {"name": "f"}}]}
    shards = write_token_shards([with_tools, {"text": "ab"}, with_tools], tokenizer, tmp_path / "shards")
    assert shards.left_out == {"the chat template cannot express the definitions of tools": 2}
    assert shards.num_documents == 1 and shards.num_bytes == 2


def test_the_same_documents_give_the_same_files(tmp_path, tokenizer):
    documents = [{"text": f"document {number} " * 50} for number in range(200)]
    for name in "ab":
        write_token_shards(iter(documents), tokenizer, tmp_path / name, shard_tokens=10_000)
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == sorted(os.listdir(tmp_path / "b")) and len(names) > 10
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_neither_files_nor_encoding_batches_change_the_stream(tmp_path, tokenizer, monkeypatch):
    documents = [{"text": f"document {number}"} if number % 3 else DIALOGUE for number in range(100)]
    whole = write_token_shards(documents, tokenizer, tmp_path / "whole", store_weights=True)
    monkeypatch.setattr(shards_module, "ENCODE_CHARACTERS", 25)
    cut = write_token_shards(documents, tokenizer, tmp_path / "cut", store_weights=True, shard_tokens=97)
    assert len(cut.manifest["shards"]) > 20
    np.testing.assert_array_equal(whole.tokens[:], cut.tokens[:])
    np.testing.assert_array_equal(whole.weights[:], cut.weights[:])


def test_shards_of_another_tokenizer_are_refused(tmp_path, tokenizer):
    write_token_shards(TEXTS, tokenizer, tmp_path / "shards")
    assert TokenShards.open(tmp_path / "shards", tokenizer.fingerprint).num_documents == 3
    with pytest.raises(UserError, match="made with another tokenizer") as caught:
        TokenShards.open(tmp_path / "shards", "0123456789abcdef" * 4)
    # Not damage: making them again would not give this tokenizer's.
    assert not isinstance(caught.value, DamagedShards)


def test_an_interrupted_writer_leaves_what_was_there(tmp_path, tokenizer):
    directory = write_token_shards(TEXTS, tokenizer, tmp_path / "shards").directory
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def interrupted():
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_shards(interrupted(), tokenizer, directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert os.listdir(directory.parent) == ["shards"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, tokenizer):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match="disk is full"):
            write_token_shards([{"text": "x" * 200_000}], tokenizer, tmp_path / "shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []
