"""Every reader of records answers whatever stands in a file with its records or with one line."""

import contextlib
import gzip
import json
import os
import random
import threading

import pytest
from backports import zstd

from tests.conftest import refusal
from tfgpt.common.errors import UserError
from tfgpt.conversation.conversation import Conversation
from tfgpt.corpus.sources import open_sources
from tfgpt.corpus.sources.json_records import read_text
from tfgpt.generation.config import GenerateConfig
from tfgpt.generation.prompts import read_prompts
from tfgpt.training.objectives.prompt_records import read_records

TURN = {"role": "user", "content": "Hi"}
VALUES = [
    None, True, 7.5, 1e400, float("nan"), "", "é🙂", "\ud83d", [], {}, [None], TURN, [TURN], [{"from": 1}], 10**30,
]  # fmt: skip
FIELDS = ("text", "messages", "conversations", "prompt", "completion", "chosen", "rejected", "id", "tools", "history")
COMPRESSED = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


def hostile(draw: random.Random) -> bytes:
    records = [
        {draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.randrange(5))}
        if draw.random() < 0.7
        else draw.choice(VALUES)
        for _ in range(draw.randrange(6))
    ]
    lines = "\n".join(json.dumps(record) for record in records)
    text = draw.choice([lines, json.dumps(records), json.dumps(records, indent=1), f"\ufeff\n{lines}\n\n"])
    content = bytearray(text.encode(draw.choice(["utf-8"] * 9 + ["utf-16"])))
    for _ in range(draw.choice([0, 0, 1, 5])):
        if content:
            content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content[: draw.choice([len(content), draw.randrange(len(content) + 1)])])


@pytest.mark.parametrize("seed", range(4))
def test_hostile_files_are_read_or_refused_in_one_line_by_every_reader(tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(25):
        suffix = draw.choice(list(COMPRESSED))
        path = tmp_path / f"{draw.choice(['a.json', '[a]?.jsonl', 'a.txt'])}{suffix}"
        content = COMPRESSED[suffix](hostile(draw))
        path.write_bytes(content[: draw.choice([None, None, -3])])
        for read in (
            lambda: list(open_sources([str(path)])[0].documents()),  # noqa: B023
            lambda: list(read_records([str(path)], "train_text")),  # noqa: B023
            lambda: read_prompts(GenerateConfig(model="m", prompt_file=str(path))),  # noqa: B023
            lambda: Conversation.load(path),  # noqa: B023
        ):
            with contextlib.suppress(UserError):
                read()
                continue
            refusal(read)
        path.unlink()


def test_a_pipe_is_read_once_from_its_first_byte(tmp_path):
    """`--prompt_file=<(command)`: what is read to look for a git-lfs pointer is not lost."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("first\nsecond\n",))
    writer.start()
    assert read_text(pipe) == "first\nsecond\n"
    writer.join()


RECORDS = [{"instruction": "Do", "input": "", "output": "Done"}, {"text": "a"}]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=1),
        "\ufeff\n" + json.dumps(RECORDS),
        "".join(f"{json.dumps(record)}\n" for record in RECORDS),
    ],
    ids=["a line", "indented", "after a mark", "JSON Lines"],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl"])
def test_a_list_of_records_is_read_as_records(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    first, second = open_sources([str(path)])[0].documents()
    assert [message["content"] for message in first["messages"]] == ["Do", "Done"]
    assert second["text"] == "a"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[\n{"text": "a"},\n{"text": 7},\n{"text": "b"}]', ":3: 'text' is a number, not a string"),
        ('[\n{"text": "a"},\n{"text": }]', ":3: not JSON (Expecting value at column 10)"),
        ('[\n{"text": "a"}\n{"text": "b"}]', ":3: not JSON (an item is followed by neither a comma nor the closing"),
        ('[\n{"text": "a"}\n', ":3: not JSON (an item is followed by neither a comma nor the closing bracket)"),
        ('[{"text": "a"}]\n[{"text": "b"}]', ":2: not JSON (there is more after the list's closing bracket)"),
        ('{\n "text": "a"\n}', ":1: not JSON (an object that spans several lines; put each record on"),
        ("[]", ": the file is empty"),
    ],
)
def test_a_list_that_cannot_be_read_is_named_by_its_line(tmp_path, content, expected):
    path = tmp_path / "a.json"
    path.write_text(content)
    line = refusal(lambda: list(open_sources([str(path)], strict=True)[0].documents()))
    assert line.startswith(str(path)) and expected in line
