"""What a run held out is found again, is told to be absent, or is named as damaged: never one for the other."""

from __future__ import annotations

import json
import shutil

import pytest

from tfgpt.pipeline.chat_shards import write_conversations
from tfgpt.pipeline.token_shards import DamagedShards, write_token_shards
from tfgpt.pipeline.validation_data import open_held_out
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture(params=["text", "conversations"])
def kept(request, tmp_path):
    """The directory of held-out tokens, the tokenizer and what training.json says of them."""
    tokenizer = byte_tokenizer()
    directory = tmp_path / "kept"
    if request.param == "text":
        opened = write_token_shards([{"text": "held out"}], tokenizer, directory)
    else:
        documents = [{"messages": SAID, "source": "a", "id": "b"}]
        options = {"length": 64, "repeat_system": True, "sources": {"a": "a"}}
        opened = write_conversations(documents, tokenizer, directory, **options)
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


@pytest.mark.parametrize("damage", ["content", "manifest", "missing"])
def test_what_is_damaged_is_named(kept, damage):
    directory, tokenizer, held_out = kept
    name = next(path.name for path in directory.glob("tokens*.bin"))
    if damage == "missing":
        (directory / name).unlink()
    elif damage == "content":
        (directory / name).write_bytes(bytes(len((directory / name).read_bytes())))
    else:
        name = "manifest.json"
        manifest = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(manifest)[:-20])
    with pytest.raises(DamagedShards, match=name):
        open_held_out(held_out, tokenizer)
