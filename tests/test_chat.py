"""`python -m tfgpt.chat` as a person uses it: through a pipe and through a terminal."""

import io
import json
import os
import sys
from pathlib import Path

import pexpect
import pytest

from tests.conftest import ROOT
from tests.serving.models import save_model
from tfgpt import chat
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.generation.prompts import encode_chat

CONTEXT = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "model", max_sequence_length=CONTEXT)


@pytest.fixture(scope="module")
def generator(model) -> Generator:
    return Generator.load(model)


@pytest.fixture
def said(model, generator, capsys, monkeypatch):
    # Its graphs are traced once for all tests.
    monkeypatch.setattr(Generator, "load", lambda directory, dtype: generator)

    def run(*lines: str | bytes, flags: tuple[str, ...] = ()) -> tuple[int, str, list[str]]:
        content = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        code = chat.main([f"--model={model}", "--max_new_tokens=12", *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def reply(generator: Generator, messages: list[tuple[str, str]], **options) -> str:
    ids = encode_chat(generator.tokenizer, [{"role": role, "content": content} for role, content in messages])
    [[completion]] = generator.generate([ids], SamplingConfig(**{"max_new_tokens": 12, **options}))
    return completion.text


def test_a_line_in_a_reply_out_and_each_reply_knows_what_was_said(said, generator):
    first = reply(generator, [("user", "汉字")])
    second = reply(generator, [("user", "汉字"), ("assistant", first), ("user", "b")])
    code, output, _ = said("汉字", "", "b")
    assert (code, output) == (0, f"{first}\n{second}\n")
    assert second != reply(generator, [("user", "b")])


def test_commands_change_what_comes_next(said, generator, tmp_path):
    system = [("system", "Be brief.")]
    greedy = reply(generator, [*system, ("user", "a")], temperature=0.0)
    drawn = reply(generator, [*system, ("user", "a")], seed=3)
    again = reply(generator, [*system, ("user", "a")], seed=4)
    code, output, errors = said(
        "a",
        "/reset",
        "/system Be brief.",
        "/set temperature 0",
        "a",
        "/set temperature=0.8",
        "/set seed 3",
        "/reset",
        "a",
        "/regenerate",
        f"/save {tmp_path}/chats.jsonl",
        "/system -",
        "/reset",
        "//slash",
        "/quit",
        "never read",
    )
    assert code == 0
    assert output.startswith(reply(generator, [("user", "a")]) + "\n")
    assert output.endswith(f"\n{greedy}\n{drawn}\n{again}\n{reply(generator, [('user', '/slash')], seed=3)}\n")
    assert json.loads((tmp_path / "chats.jsonl").read_text(encoding="utf-8"))["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": again},
    ]
    assert f"saved as line 1 of {tmp_path}/chats.jsonl" in errors


def test_a_loaded_conversation_goes_on(said, generator, tmp_path):
    messages = [("user", "a"), ("assistant", "你好"), ("user", "b")]
    path = tmp_path / "chats.jsonl"
    path.write_text(
        json.dumps({"messages": [{"role": role, "content": content} for role, content in messages[:2]]}) + "\n"
    )
    expected = reply(generator, messages) + "\n"
    assert said("b", flags=(f"--load={path}",))[:2] == (0, expected)
    assert said(f"/load {path}", "b", "/save")[:2] == (0, expected)
    [line] = path.read_text(encoding="utf-8").splitlines()
    assert len(json.loads(line)["messages"]) == 4


def test_turns_that_do_not_fit_are_left_out_and_the_chat_goes_on(said, generator):
    # A byte a token: each turn has about 80 tokens, the model reads 256.
    lines = [letter * 40 for letter in "abcdef"]
    code, output, errors = said(*lines, "/set max_new_tokens 4", flags=("--system=S", "--temperature=0"))
    assert code == 0
    assert any("no longer reads the first" in line for line in errors)
    assert output.count("\n") >= len(lines)
    code, output, errors = said("x" * 300)
    assert (code, output) == (2, "")
    assert "standard input, line 1: the message has" in errors[-1] and "at most 256; shorten it" in errors[-1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nonsense", "/nonsense: no such command"),
        ("/set colour 3", "/set colour: no such setting; there are temperature"),
        ("/set temperature hot", "/set temperature: hot is not a number"),
        ("/set temperature -1", "/set temperature: -1.0 is below the smallest allowed, 0"),
        ("/set top_k 2.5", "/set top_k: 2.5 is not a whole number"),
        ("/set top_p 0", "/set top_p: 0.0 leaves no token"),
        ("/regenerate", "/regenerate: there is no message yet"),
        ("/save", "/save: give a file"),
        ("/save chat.txt", "chat.txt: give a name that ends in .jsonl"),
        ("/load", "/load: give a file"),
        ("/load /nowhere.jsonl", "/nowhere.jsonl: no such file"),
        (b"caf\xe9", "the message: is not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_done_is_named(said, line, words):
    code, output, errors = said(line, "b")
    assert (code, output, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"tfgpt.chat: standard input, line 1: {words}")


def test_wrong_flags_are_one_line(said):
    for flag, words in (("--load=/nowhere.jsonl", "no such file"), ("--num_samples=2", "one reply at a time")):
        code, output, errors = said("a", flags=(flag,))
        assert (code, output, len(errors)) == (2, "", 1) and words in errors[0]


def test_a_person_at_a_terminal(model, tmp_path):
    path = tmp_path / "chats.jsonl"
    flags = [f"--model={model}", "--max_new_tokens=1000000", "--temperature=0"]
    terminal = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1"}
    person = pexpect.spawn(
        sys.executable,
        ["-m", "tfgpt.chat", *flags],
        cwd=str(ROOT),
        env=os.environ | terminal | {"PYTHONPATH": str(ROOT)},
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 40),
    )
    try:
        person.expect("Ctrl-D ends")
        person.expect("> ")
        # Wide characters: backspace takes one away, left goes over one.
        person.send("你好吗\x7f")
        person.send("\x1b[D")  # left
        person.send("们\r")
        # A reply without end: greedy text of random weights goes round in circles.
        person.expect(r"\?2004l.{20}")
        person.sendintr()
        person.expect("stopped; the text so far is kept")
        person.send("\x1b[200~two\nlines\x1b[201~")  # A paste.
        person.send("\x7f\r")
        person.expect(r"\?2004l.{20}")
        person.sendintr()
        person.expect("stopped; the text so far is kept")
        person.send("/set warmth 3\r")
        person.expect("no such setting")
        person.expect(r"\?2004h.*> ")  # The prompt is there: from now on Ctrl-C is a key.
        person.sendintr()
        person.expect("Ctrl-D or /quit ends the chat")
        person.send(f"/save {path}\r")
        person.expect("saved as line 1")
        person.expect(r"\?2004h.*> ")  # Before that the terminal itself would take Ctrl-D.
        person.sendeof()
        person.expect(pexpect.EOF)
    finally:
        person.close(force=True)
    assert person.exitstatus == 0
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in messages[::2]] == ["你们好", "two\nline"]
    assert all(message["content"] for message in messages)
