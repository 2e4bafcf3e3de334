"""Every reader of records answers whatever stands in a file with its records or with one line."""

from __future__ import annotations

import contextlib
import gzip
import json
import random

import pytest
import zstandard

from tfgpt.common.errors import UserError
from tfgpt.conversation.conversation import Conversation
from tfgpt.corpus.sources import open_sources
from tfgpt.generation.config import GenerateConfig
from tfgpt.generation.prompts import read_prompts
from tfgpt.training.objectives.prompt_records import read_records

TURN = {"role": "user", "content": "Hi"}
VALUES = [
    None,
    True,
    7.5,
    1e400,
    float("nan"),
    "",
    "é🙂",
    "\ud83d",
    [],
    {},
    [None],
    TURN,
    [TURN],
    [{"from": 1}],
    10**30,
]
FIELDS = ("text", "messages", "conversations", "prompt", "completion", "chosen", "rejected", "id", "tools", "history")
COMPRESSED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def hostile(draw: random.Random) -> bytes:
    """Records of odd values in one of the forms, some bytes of it changed or cut."""
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
            with pytest.raises(UserError, match=r"\A.*\Z"):
                read()
        path.unlink()
