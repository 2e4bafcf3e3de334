"""Prompts in files of every form that is promised."""

import gzip
import json

import pytest
from backports import zstd

from tfgpt.common.errors import UserError
from tfgpt.generation.config import GenerateConfig
from tfgpt.generation.prompts import encode, read_prompts
from tfgpt.tokenization.chat_template import get_chat_template
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

LINES = b'"a"\n\n{"prompt": "b"}\n{"messages": [{"role": "user", "content": "c"}]}\n'
PROMPTS = ["a", "b", [{"role": "user", "content": "c"}]]


def prompts(path) -> list:
    return read_prompts(GenerateConfig(model="m", prompt_file=str(path)))


@pytest.mark.parametrize("name", ["p.jsonl", "[1] p?.jsonl.gz", "p.ndjson.zst", "p.json"])
def test_records_are_prompts_compressed_or_not(tmp_path, name):
    compress = {"gz": gzip.compress, "zst": zstd.compress}.get(name.rsplit(".", 1)[1], bytes)
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


def test_dialogues_are_prompts_whatever_the_speakers_are_called_and_keep_their_tools(tmp_path):
    tool, hi = {"type": "function", "function": {"name": "f"}}, {"role": "user", "content": "Hi"}
    shapes = [
        {"messages": [{"role": "human", "content": [{"type": "text", "text": "Hi"}]}]},
        {"conversations": [{"from": "prompter", "value": "Hi"}]},
        {"prompt": [hi]},
        [hi],
        {"messages": [hi], "tools": [tool]},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(shape) + "\n" for shape in shapes), encoding="utf-8")
    found = prompts(tmp_path / "p.jsonl")
    assert found == [[hi]] * 4 + [{"messages": [hi], "tools": [tool]}]
    tokenizer = byte_tokenizer()
    tokenizer.config["chat_template"] = "{{ tools | tojson if tools }}{{ messages[0].content }}"
    assert [tokenizer.decode(encode(tokenizer, prompt)) for prompt in found[-2:]] == ["Hi", json.dumps([tool]) + "Hi"]


@pytest.mark.parametrize("line", ['{"messages": []}', "3", "{}", '{"messages": [{"role": "robot", "content": "a"}]}'])
def test_what_is_no_prompt_is_named(tmp_path, line):
    (tmp_path / "p.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match="^--prompt_file: .*p.jsonl:1: "):
        prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "stdin"])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, monkeypatch, name):
    # huggingface/datasets#8241; what Windows' editors and pipes begin with, invisible and a token of its own.
    text = "\ufeff" + ('"one"\r\n' if name == "p.jsonl" else "one\r\n")
    (tmp_path / name).write_bytes(text.encode())
    if name == "stdin":
        monkeypatch.setattr("sys.stdin", open(tmp_path / name, encoding="utf-8"))  # noqa: SIM115
        assert read_prompts(GenerateConfig(model="m")) == ["one"]
    else:
        assert prompts(tmp_path / name) == ["one"]


def test_a_byte_order_mark_is_no_part_of_a_chat_template(tmp_path):
    # It would begin every conversation.
    byte_tokenizer().save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes("\ufeff{{ messages[0].content }}".encode())
    assert get_chat_template(load_tokenizer(tmp_path)).render([{"role": "user", "content": "Hi"}]) == "Hi"
