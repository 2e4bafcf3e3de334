"""Dialogues as OpenAI, ShareGPT, Alpaca and trl publish them become messages; bad lines are named."""

import json
import random

import pytest

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base, open_sources
from tfgpt.corpus.sources.chat_formats import parse_messages, parse_tools

EXCHANGE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
SYSTEM = {"role": "system", "content": "Be kind."}


def read(tmp_path, *values, whole=False):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    documents = list(open_sources([str(path)], strict=True)[0].documents())
    if whole:
        return [{name: document[name] for name in ("messages", "tools") if name in document} for document in documents]
    return [document["messages"] for document in documents]


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
        ({"messages": [{"role": "prompter", "text": "Hi"}, {"role": "bot", "text": "Hello."}]}, EXCHANGE),
        ({"conversations": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello."}]}, EXCHANGE),
        ({"messages": [EXCHANGE[0], SYSTEM, EXCHANGE[1]]}, [EXCHANGE[0], SYSTEM, EXCHANGE[1]]),
        ({"prompt": [SYSTEM, EXCHANGE[0]], "completion": [EXCHANGE[1]]}, [SYSTEM, *EXCHANGE]),
        (
            {"prompt": [*EXCHANGE, EXCHANGE[0]], "completion": "Hello."},
            [EXCHANGE[0], {**EXCHANGE[1], "weight": 0}, *EXCHANGE],
        ),
        ({"prompt": "Hi", "completion": "Hello."}, EXCHANGE),
        ({"question": "Hi", "answer": "Hello."}, EXCHANGE),
    ],
)  # fmt: skip
def test_every_shape_becomes_messages(tmp_path, value, messages):
    assert read(tmp_path, value) == [messages]


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "In words.", "parameters": PARAMETERS}}


def called(number, city):
    arguments = {"name": "weather", "arguments": {"city": city}}
    return {"type": "function", "function": arguments, "id": f"call{number:05}"}


def answered(number, content):
    return {"role": "tool", "content": content, "tool_call_id": f"call{number:05}"}


ASKED = {"role": "user", "content": "Rain?"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [called(1, "Bern")]}
CALLS = [ASKED, CALLING, answered(1, "no"), {"role": "assistant", "content": "No."}]
ARGUMENTS = json.dumps({"city": "Bern"})


def test_openais_format_with_tools_is_read(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    value = {
        "messages": [
            {**ASKED, "name": "Ann", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "weight": 0, "audio": None},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "no"}]},
            {"role": "assistant", "content": "No.", "weight": 1, "name": None},
            {"role": "assistant", "content": None, "refusal": "I cannot."},
        ],
        "tools": [WEATHER],
        "parallel_tool_calls": True,
    }
    assert read(tmp_path, value, whole=True) == [
        {
            "messages": [
                {**ASKED, "name": "Ann"},
                {**CALLING, "tool_calls": [{**called(1, "Bern"), "id": "c1"}], "weight": 0},
                {"role": "tool", "content": "no", "tool_call_id": "c1"},
                {"role": "assistant", "content": "No.", "weight": 1},
                {"role": "assistant", "content": "I cannot."},
            ],
            "tools": [WEATHER],
        }
    ]


@pytest.mark.parametrize(
    "value",
    [
        # What OpenAI had before tools.
        {"functions": [WEATHER["function"]],
         "messages": [ASKED, {"role": "assistant", "content": None,
                              "function_call": {"name": "weather", "arguments": ARGUMENTS}},
                      {"role": "function", "content": "no"}, CALLS[-1]]},
        # ShareGPT as LLaMA-Factory has it.
        {"tools": json.dumps([WEATHER["function"]]),
         "conversations": [{"from": "human", "value": "Rain?"},
                           {"from": "function_call",
                            "value": json.dumps({"name": "weather", "arguments": {"city": "Bern"}})},
                           {"from": "observation", "value": "no"}, {"from": "gpt", "value": "No."}]},
        # trl's.
        {"tools": [WEATHER], "prompt": [ASKED], "completion": CALLS[1:]},
    ],
)  # fmt: skip
def test_calls_in_every_shape_become_openais(tmp_path, value):
    assert read(tmp_path, value, whole=True) == [{"messages": CALLS, "tools": [WEATHER]}]


def test_sharegpts_calls_at_the_same_time_and_words_before_them_are_one_message(tmp_path):
    calls = [{"name": "weather", "arguments": {"city": city}} for city in ("Bern", "Chur")]
    turns = [("human", "Rain?"), ("gpt", "Let me see."), ("function_call", json.dumps(calls)), ("observation", "no"),
             ("observation", '{"rain": true}'), ("gpt", "In Chur.")]  # fmt: skip
    assert read(tmp_path, {"conversations": [{"from": name, "value": text} for name, text in turns]}) == [
        [
            ASKED,
            {"role": "assistant", "content": "Let me see.", "tool_calls": [called(1, "Bern"), called(2, "Chur")]},
            answered(1, "no"),
            answered(2, '{"rain": true}'),
            {"role": "assistant", "content": "In Chur."},
        ]
    ]


def test_a_call_without_a_functions_name_is_a_message(tmp_path):
    turns = [("human", "Rain?"), ("function_call", "{}"), ("observation", "no"), ("gpt", "No.")]
    assert read(tmp_path, {"conversations": [{"from": name, "value": text} for name, text in turns]}) == [
        [ASKED, {"role": "assistant", "content": "{}"}, {"role": "tool", "content": "no"}, CALLS[-1]]
    ]


def test_documents_that_differ_in_calls_or_tools_alone_are_not_the_same():
    documents = [{"messages": CALLS, "tools": [WEATHER]}, {"messages": CALLS}, {"messages": [*CALLS[:1], *CALLS[2:]]}]
    documents.append({"messages": [{**message, "weight": 0} for message in CALLS]})
    assert len({base.content_digest(document) for document in documents}) == len(documents)
    assert base.content_digest({"messages": EXCHANGE}).hex() == "831978692ae0af73c3ce1509865561ea"  # as ever
    assert '"city": "Bern"' in "".join(base.content_texts(documents[0]))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"conversations": [{"from": "robot", "value": "x"}]}, "a.jsonl:2: turn 1 of 'conversations' is from 'robot'"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "a.jsonl:2: message 1: 'content' is a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a.jsonl:2: message 1: .*image_url"),
        ({"instruction": "x", "output": "y", "history": "z"}, "a.jsonl:2: 'history' is not a list of pairs"),
        ({"messages": [{"role": "assistant", "content": None}]}, "a.jsonl:2: message 1: 'content' is null"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "a.jsonl:2: message 1: 'weight' is 0.5"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            "a.jsonl:2: message 1: 'tool_calls' holds a call without",
        ),
        ({"messages": EXCHANGE, "tools": "weather"}, "a.jsonl:2: 'tools' is neither JSON nor a list"),
        ({"messages": EXCHANGE, "tools": [{}]}, "a.jsonl:2: 'tools' holds something other than a named function"),
        (
            {"conversations": [{"from": ["gpt"], "value": "x"}]},
            r"a.jsonl:2: turn 1 of 'conversations' is from \['gpt'\]",
        ),
        ({"instruction": "x"}, "a.jsonl:2: neither 'text' nor 'messages' .*Alpaca"),
    ],
)
def test_bad_lines_are_named(tmp_path, value, problem):
    with pytest.raises(UserError, match=problem):
        read(tmp_path, {"messages": EXCHANGE}, value)


def any_value(draw: random.Random, depth: int):
    fields = ("messages", "conversations", "prompt", "completion", "instruction", "output", "history", "tools", "role",
              "from", "content", "value", "tool_calls", "function_call", "function", "name", "arguments", "weight",
              "tool_call_id", "refusal")  # fmt: skip
    plain = ("user", "gpt", "function_call", "tool", "developer", "", '[{"name": "f"}]', "\ud83d", 0, 0.5, True, None)
    kind = draw.random()
    if depth == 0 or kind < 0.4:
        return draw.choice(plain)
    if kind < 0.7:
        return {draw.choice(fields): any_value(draw, depth - 1) for _ in range(draw.randrange(5))}
    return [any_value(draw, depth - 1) for _ in range(draw.randrange(4))]


def test_any_record_is_read_or_refused_in_one_line():
    draw = random.Random(1)
    read, refusals = 0, []
    for _ in range(5000):
        turns = [
            {draw.choice(("role", "from")): draw.choice(("user", "gpt", "function_call", "tool")), "content": "x"}
            | {
                field: any_value(draw, 3)
                for field in draw.sample(("content", "tool_calls", "function_call", "name"), 1)
            }
            for _ in range(draw.randrange(4))
        ]
        value = {
            draw.choice(("messages", "conversations", "prompt")): turns,
            **dict.fromkeys(("tools",), any_value(draw, 3)),
        }
        value |= {draw.choice(("completion", "messages", "history")): any_value(draw, 4)}
        try:
            document = {"messages": parse_messages(value, "a.jsonl:1") or [], **parse_tools(value, "a.jsonl:1")}
            base.content_digest(document)
            base.reason_to_drop(document)
            read += 1
        except UserError as error:
            refusals.append(str(error))
    assert read > 500 and len(refusals) > 500
    assert all("\n" not in line and line.startswith("a.jsonl:1: ") for line in refusals)
