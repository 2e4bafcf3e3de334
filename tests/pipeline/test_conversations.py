"""What conversations on disk say, and what reading it costs."""

from __future__ import annotations

import sys

from tfgpt.pipeline.conversations import write_conversations
from tfgpt.tokenization.train import byte_tokenizer


def test_what_all_parts_say_is_read_without_opening_the_file_for_each(tmp_path):
    said = [[{"role": "user", "content": f"é{n}"}, {"role": "assistant", "content": "Yes."}] for n in range(50)]
    documents = [{"messages": messages, "source": "a", "id": str(n)} for n, messages in enumerate(said)]
    options = {"length": 64, "repeat_system": True, "sources": {"a": "a"}}
    made = write_conversations(documents, byte_tokenizer(), tmp_path / "made", **options)
    opened: list[str] = []
    recording = True
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if recording and event == "open" else None)
    assert [dialogue["messages"] for dialogue in made.dialogues()] == said
    recording = False
    assert not [name for name in opened if "parts.jsonl" in name]
