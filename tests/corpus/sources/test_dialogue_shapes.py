"""Dialogues as OpenAI, ShareGPT and Alpaca publish them become messages; bad lines are named."""

import json

import pytest

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import open_sources

EXCHANGE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
SYSTEM = {"role": "system", "content": "Be kind."}


def read(tmp_path, *values):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return [document["messages"] for document in open_sources([str(path)])[0].documents()]


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        ({"messages": [{**SYSTEM, "role": "developer"}, *EXCHANGE]}, [SYSTEM, *EXCHANGE]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                          EXCHANGE[1]]},
            EXCHANGE,
        ),
        (
            {"id": "x", "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"},
                                          {"from": "gpt", "value": "Hello."}]},
            [SYSTEM, *EXCHANGE],
        ),
        ({"conversations": EXCHANGE}, EXCHANGE),
        ({"instruction": "Hi", "input": "", "output": "Hello.", "text": "rendered"}, EXCHANGE),
        (
            {"instruction": "Translate.", "input": "你好", "output": "Hello.", "system": "Be kind.",
             "history": [["Hi", "Hello."]]},
            [SYSTEM, *EXCHANGE, {"role": "user", "content": "Translate.\n\n你好"}, EXCHANGE[1]],
        ),
        ({"prompt": "Hi", "completion": "Hello."}, EXCHANGE),
        ({"question": "Hi", "answer": "Hello."}, EXCHANGE),
    ],
)  # fmt: skip
def test_every_shape_becomes_messages(tmp_path, value, messages):
    assert read(tmp_path, value) == [messages]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"conversations": [{"from": "robot", "value": "x"}]}, "a.jsonl:2: turn 1 of 'conversations' is from 'robot'"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "a.jsonl:2: message 1: 'content' is a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a.jsonl:2: message 1: .*image_url"),
        ({"instruction": "x", "output": "y", "history": "z"}, "a.jsonl:2: 'history' is no list of pairs"),
        ({"instruction": "x"}, "a.jsonl:2: neither 'text' nor 'messages' .*Alpaca"),
    ],
)
def test_bad_lines_are_named(tmp_path, value, problem):
    with pytest.raises(UserError, match=problem):
        read(tmp_path, {"messages": EXCHANGE}, value)
