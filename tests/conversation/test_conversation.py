"""What a conversation keeps, what of it is read, and its line in a file."""

import gzip
import json
from pathlib import Path

import pytest
from backports import zstd

from tfgpt.common.errors import UserError
from tfgpt.conversation.conversation import Conversation, truncate_messages
from tfgpt.corpus.sources import open_sources

SYSTEM = {"role": "system", "content": "Be kind."}


def turns(count: int) -> list[dict[str, str]]:
    return [
        message
        for number in range(count)
        for message in ({"role": "user", "content": f"u{number}"}, {"role": "assistant", "content": f"a{number}"})
    ]


def in_characters(messages) -> int:
    return sum(len(message["content"]) for message in messages)


@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_the_oldest_whole_turns_are_left_out_and_the_system_message_stays(system):
    messages = [*system, *turns(5), {"role": "user", "content": "u5"}]
    for room in range(60):
        part, left_out = truncate_messages(messages, in_characters, room)
        assert part == [*system, *messages[len(system) + left_out :]]
        assert part[len(system)]["role"] == "user" and part[-1] == messages[-1]
        # It fits, or is the last turn alone; and one turn more would not fit.
        assert in_characters(part) <= room or part == [*system, messages[-1]]
        if left_out:
            assert in_characters([*system, *messages[len(system) + left_out - 2 :]]) > room


def test_an_assistant_who_speaks_first_goes_with_the_first_turn():
    messages = [{"role": "assistant", "content": "hello"}, *turns(2)]
    assert truncate_messages(messages, in_characters, 100) == (messages, 0)
    assert truncate_messages(messages, in_characters, 5) == (messages[3:], 3)


def test_a_saved_conversation_is_a_line_of_its_own_until_it_is_saved_again(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "older"}], "source": "x"}\n\n', encoding="utf-8")
    chat = Conversation([SYSTEM, *turns(1)])
    assert chat.save(path) == 2
    chat.messages += [{"role": "user", "content": "汉字\nline"}, {"role": "assistant", "content": "😀"}]
    assert chat.save(path) == 2
    chat.reset()
    chat.messages += turns(1)
    assert chat.save(path) == 3
    first, second, third = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["source"] == "x"
    assert json.loads(second)["messages"][-2:] == [
        {"role": "user", "content": "汉字\nline"},
        {"role": "assistant", "content": "😀"},
    ]
    assert "汉字" in second
    assert json.loads(third)["messages"] == [SYSTEM, *turns(1)]
    assert Conversation.load(path, 2).messages == json.loads(second)["messages"]
    assert Conversation.load(path).messages == [SYSTEM, *turns(1)]
    assert Conversation.load(path, 1).save(path) == 1


def test_train_reads_a_saved_conversation(tmp_path):
    path = tmp_path / "chats.jsonl"
    Conversation([SYSTEM, *turns(2)]).save(path)
    [document] = open_sources([str(path)], strict=True)[0].documents()
    assert document["messages"] == [SYSTEM, *turns(2)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "chats.jsonl:1: not JSON"),
        ('["a"]', 'chats.jsonl:1: no object with "messages"'),
        ('{"messages": [3]}', "chats.jsonl:1: message 1 is a number"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "chats.jsonl:1: message 1 has the role 'robot'"),
        ('{"messages": [{"role": "user"}]}', "chats.jsonl:1: message 1 has no 'content'"),
        ("", "has 0 lines, none with a conversation"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path, line, words):
    path = tmp_path / "chats.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        Conversation.load(path)


def test_places_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.jsonl"):
        Conversation(turns(1)).save(tmp_path / "chat.txt")
    with pytest.raises(UserError, match="/nowhere/chats.jsonl: no such file"):
        Conversation.load(Path("/nowhere/chats.jsonl"))
    Conversation(turns(1)).save(tmp_path / "chats.jsonl")
    with pytest.raises(UserError, match="has 1 line, no line 3 with a conversation"):
        Conversation.load(tmp_path / "chats.jsonl", 3)
    (tmp_path / "latin.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin.jsonl: line 1, byte 3: not UTF-8 \(0xe9\)"):
        Conversation.load(tmp_path / "latin.jsonl")


def test_a_conversation_with_calls_and_tools_is_read_in_any_shape_and_saved_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    tool = {"type": "function", "function": {"name": "f"}}
    turns = [
        ("human", "Go"),
        ("function_call", '{"name": "f", "arguments": {}}'),
        ("observation", "1"),
        ("gpt", "One."),
    ]
    shared = {"conversations": [{"from": name, "value": text} for name, text in turns], "tools": [tool]}
    path.write_text(json.dumps(shared) + "\n", encoding="utf-8")
    chat = Conversation.load(path)
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[1]["tool_calls"][0]["function"]["name"] == "f" and chat.tools == [tool]
    chat.save(path)
    assert Conversation.load(path).messages == chat.messages and Conversation.load(path).tools == [tool]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_conversation_is_loaded_from_its_line_blank_ones_counted(tmp_path, suffix):
    lines = [json.dumps({"messages": turns(number)}) for number in (1, 2)]
    content = f"\n{lines[0]}\n\n{lines[1]}\n\n".encode()
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[suffix]
    path = tmp_path / f"chats.jsonl{suffix}"
    path.write_bytes(compress(content))
    assert Conversation.load(path, 2).messages == turns(1)
    assert Conversation.load(path).messages == Conversation.load(path, 4).messages == turns(2)
    with pytest.raises(UserError, match="has 5 lines, no line 3 with a conversation"):
        Conversation.load(path, 3)
