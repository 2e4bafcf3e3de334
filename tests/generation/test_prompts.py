"""Prompts in files of every form that is promised."""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard

from tfgpt.common.errors import UserError
from tfgpt.generation.config import GenerateConfig
from tfgpt.generation.prompts import read_prompts

LINES = b'"a"\n\n{"prompt": "b"}\n{"messages": [{"role": "user", "content": "c"}]}\n'
PROMPTS = ["a", "b", [{"role": "user", "content": "c"}]]


def prompts(path) -> list:
    return read_prompts(GenerateConfig(model="m", prompt_file=str(path)))


@pytest.mark.parametrize("name", ["p.jsonl", "[1] p?.jsonl.gz", "p.ndjson.zst", "p.json"])
def test_records_are_prompts_compressed_or_not(tmp_path, name):
    compress = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(name.rsplit(".", 1)[1], bytes)
    (tmp_path / name).write_bytes(compress(json.dumps(PROMPTS[:1]).encode() if name == "p.json" else LINES))
    assert prompts(tmp_path / name) == (PROMPTS[:1] if name == "p.json" else PROMPTS)


def test_a_compressed_text_is_one_prompt(tmp_path):
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    assert prompts(tmp_path / "p.txt.gz") == ["one\ntwo"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_what_is_not_utf8_is_named_by_its_line(tmp_path, name):
    (tmp_path / name).write_bytes(b'"a"\n"\xff"\n')
    with pytest.raises(UserError, match=rf"^--prompt_file: .*{name}: line 2, byte 5: not UTF-8 \(0xff\)"):
        prompts(tmp_path / name)
