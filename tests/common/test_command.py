"""Claims about flags and errors of commands."""

from __future__ import annotations

import dataclasses
import signal
from typing import ClassVar

import pytest

from tfgpt.common.command import Command, Overrides
from tfgpt.common.errors import RunError, SettingError, UserError
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class OvenConfig(Settings):
    """Settings of an oven."""

    title: ClassVar[str] = "Oven"

    temperature: float = setting(180.0, "Degrees Celsius.", minimum=0.0, maximum=300.0)
    minutes: int | None = setting(None, "Minutes in the oven.", minimum=1)
    dishes: tuple[str, ...] = setting(("bread",), "What goes in.")
    fan: bool = setting(False, "Blow.")
    shelf: str = setting("middle", "Which shelf.", choices=("top", "middle"))

    def check(self) -> None:
        if self.fan and self.shelf == "top":
            raise SettingError("shelf", "the fan is at the top")


@dataclasses.dataclass(frozen=True)
class PlateConfig(Settings):
    """Settings of a plate."""

    title: ClassVar[str] = "Plate"

    width: int = setting(20, "Centimetres.")
    colour: str = setting("white", "Colour.")


def command(function=lambda **settings: None) -> Command:
    return Command("bake", "Bakes.", (OvenConfig, Overrides(PlateConfig, "plate", exclude=("colour",))), function)


def test_defaults_and_given_flags_reach_the_function():
    settings = command().parse(["--temperature=200", "--fan", "--width=25"])
    assert settings["oven"] == OvenConfig(temperature=200.0, fan=True)
    assert settings["plate"] == {"width": 25}
    assert command().parse([])["plate"] == {}


def test_later_flags_win_over_the_flag_file_also_when_repeatable(tmp_path):
    file = tmp_path / "bake.cfg"
    file.write_text("# a comment\n--dishes=cake\n--dishes=pie\n--temperature=150\n")
    assert command().parse([f"--flagfile={file}"])["oven"].dishes == ("cake", "pie")
    oven = command().parse([f"--flagfile={file}", "--dishes=tart", "--temperature=170"])["oven"]
    assert oven.dishes == ("tart",)
    assert oven.temperature == 170.0
    assert command().parse(["--temperature=170", "--flagfile", str(file)])["oven"].temperature == 150.0


def test_the_written_flag_file_gives_the_same_settings(tmp_path):
    settings = command().parse(["--minutes=5", "--dishes=a b", "--dishes=c", "--nofan", "--width=3"])
    file = tmp_path / "flags.cfg"
    file.write_text(command().flag_file(settings))
    assert command().parse([f"--flagfile={file}"]) == settings


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--temprature=1", "temprature"),
        ("--temperature=hot", "--temperature=hot"),
        ("--temperature=301", "--temperature: 301.0 is above the largest allowed, 300"),
        ("--temperature=nan", "--temperature: is not a number"),
        ("--minutes=0", "--minutes: 0 is below the smallest allowed, 1"),
        ("--shelf=low", "--shelf=low"),
        ("--flagfile=/no/such.cfg", "--flagfile: /no/such.cfg is not a file"),
        ("loaf", "loaf: an argument without a flag"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it_and_exit_code_2(argument, words, capsys):
    assert command().run([argument]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_a_combination_that_cannot_work_names_its_flag(capsys):
    assert command().run(["--fan", "--shelf=top"]) == 2
    assert capsys.readouterr().err == "tfgpt.bake: --shelf: the fan is at the top\n"


@pytest.mark.parametrize(("error", "code"), [(UserError("a\nb"), 2), (RunError("a\nb"), 1)])
def test_known_errors_become_one_line_and_their_exit_code(error, code, capsys):
    def fail(**settings):
        raise error

    assert command(fail).run([]) == code
    assert capsys.readouterr().err == "tfgpt.bake: a b\n"


def test_help_names_every_flag_with_its_default_by_concept(capsys):
    assert command().run(["--help"]) == 0
    text = capsys.readouterr().out
    for words in ("Oven:", "--temperature=NUMBER", "default: 180.0", "top|middle", "Plate:", "--width", "--flagfile"):
        assert words in text
    assert "--colour" not in text


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys):
    def wait(**settings):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command(wait).run([]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped" in capsys.readouterr().err
