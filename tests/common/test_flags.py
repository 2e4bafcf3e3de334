"""Claims about flag files: whatever is written is read back equal."""

import importlib
import random

import pytest

from tfgpt.__main__ import COMMANDS
from tfgpt.common.errors import UserError
from tfgpt.common.flags import flag_fields, flag_line, keyword_name, read_flag_file

PIECES = [
    "a", "--seed=1", "#", "//", "=", '"', "'", "\\", "\\n", " ", "\t", "\n", "\r", "\r\n", "\x85", "\u2028", "\x00",
    "\x1b", "\ufeff", "\u3000", "é", "汉", "👍", "\udc80", "--flagfile=x", "$HOME", "`", "%s", "\x0b", "\x0c", "\x1c",
]  # fmt: skip


def texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["", *("".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in range(count - 1))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_every_command_is_read_back_equal(name, tmp_path):
    command = importlib.import_module(f"tfgpt.{name}").COMMAND
    draw = random.Random(name)
    settings, file = {}, tmp_path / "flags.cfg"
    for group in command.groups:
        content: dict[str, object] = {}
        for field, kind in flag_fields(group):
            if kind is str:
                content[field.name] = draw.choice(texts(draw.random(), 20)) + draw.choice(PIECES)
            elif kind is tuple:
                content[field.name] = texts(draw.random(), draw.randint(1, 3))
            elif kind is float:
                content[field.name] = draw.lognormvariate(0, 50)
            elif kind is int:
                content[field.name] = draw.randint(-(2**62), 2**62)
            else:
                content[field.name] = draw.random() < 0.5
        settings[keyword_name(group)] = content
    file.write_text(command.flag_file(settings), encoding="utf-8", newline="\n")
    assert [flag for flag in read_flag_file(str(file)) if flag] == command.arguments(settings)
    values = command.flag_values()
    values([name, *command.expand_flag_files(values, [f"--flagfile={file}"])])
    for key, content in settings.items():
        for flag, value in content.items():
            assert values[flag].value == value, (key, flag)


def test_a_line_holds_any_text(tmp_path):
    file = tmp_path / "flags.cfg"
    given = texts(0, 2000)
    file.write_text("\n".join(flag_line("x", text) for text in given), encoding="utf-8", newline="\n")
    assert read_flag_file(str(file)) == [f"--x={text}" for text in given]


def test_plain_values_are_written_plainly_and_windows_files_are_read(tmp_path):
    assert flag_line("text", r"C:\new\*.txt") == r"--text=C:\new\*.txt"
    assert flag_line("prompt", "a\nb") == r'--prompt="a\nb"'
    file = tmp_path / "flags.cfg"
    file.write_bytes(b'\xef\xbb\xbf# comment\r\n// another\r\n\r\n  --seed=1  \r\n--prompt="say \\"hi\\" "\r\n')
    assert read_flag_file(str(file)) == ["--seed=1", '--prompt=say "hi" ']


def test_flag_files_name_others_but_not_themselves(tmp_path):
    one, two = tmp_path / "one.cfg", tmp_path / "two.cfg"
    one.write_text(f"--a=1\n--flagfile={two}\n--b=2\n")
    two.write_text("--c=3\n")
    assert read_flag_file(str(one)) == ["--a=1", "--c=3", "--b=2"]
    two.write_text(f"--flagfile={one}\n")
    with pytest.raises(UserError, match="names itself"):
        read_flag_file(str(one))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'--a="C:\\data"', r"line 1: a value in quotes is read as a JSON string \(Invalid"), (b"\xff", "can't decode")],
)
def test_a_flag_file_that_cannot_be_read_is_named(content, words, tmp_path):
    file = tmp_path / "flags.cfg"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"--flagfile: .*flags.cfg.*{words}"):
        read_flag_file(str(file))
