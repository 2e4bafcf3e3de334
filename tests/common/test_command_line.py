"""Claims about flags and errors of commands."""

import dataclasses
import os
import shlex
import signal
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest

from tfgpt.common.command_line import Command, shell_command
from tfgpt.common.errors import RunError, SettingError, UserError
from tfgpt.common.flags import Overrides
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

    width: int = setting(20, "Centimetres.", minimum=0)
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
        ("--temprature=1", "--temprature: no such flag; did you mean --temperature?"),
        ("--Temperature=1", "did you mean --temperature?"),
        ("--temperature=hot", "--temperature=hot: not a number"),
        ("--temperature=1e400", "--temperature: is not a finite number"),
        ("--temperature=-inf", "--temperature: is not a finite number"),
        ("--minutes=1e2", "--minutes=1e2: not a whole number"),
        ("--width=99999999999", "--width: 99999999999 is above the largest allowed, 2147483647"),
        ("--width=" + "9" * 4000, "is above the largest allowed"),
        ("--width=-3", "--width: -3 is below the smallest allowed, 0"),
        ("--temperature=301", "--temperature: 301.0 is above the largest allowed, 300"),
        ("--temperature=nan", "--temperature: is not a number"),
        ("--minutes=0", "--minutes: 0 is below the smallest allowed, 1"),
        ("--shelf=Midle", "--shelf: 'Midle' is not one of top, middle; did you mean middle?"),
        ("--verbosity=2", "--verbosity=2"),
        ("--flagfile=/no/such.cfg", "--flagfile: /no/such.cfg: is not a file (there is no /no); the folder / has"),
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


@pytest.mark.parametrize(
    ("number", "resumable", "code", "words"),
    [
        (signal.SIGINT, False, 130, "stopped by SIGINT before it was done"),
        (signal.SIGTERM, False, 143, "stopped by SIGTERM before it was done"),
        (signal.SIGTERM, True, 0, "stopped by SIGTERM; finished work is kept, the same command continues"),
    ],
)
def test_a_signal_ends_a_command_with_its_own_exit_code_unless_it_saved(number, resumable, code, words, capsys):
    def wait(**settings):
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert Command("bake", "Bakes.", (OvenConfig,), wait, resumable=resumable).run([]) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == f"tfgpt.bake: {words}\n"


def test_verbosity_shows_the_notices_of_tensorflow(monkeypatch):
    for flags, level in (([], None), (["--verbosity=1"], "0")):
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
        assert command().run(flags) == 0
        assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level


def crash(**settings):
    address = "https://me:hunter2@host/x?token=abc"
    raise ZeroDivisionError(f"no\nluck with {address} and {os.environ['BAKERY_API_KEY']}")


def test_an_unforeseen_exception_writes_a_crash_file_without_secrets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("BAKERY_API_KEY", "wheat-and-rye")
    monkeypatch.delenv("TFGPT_DEBUG", raising=False)
    assert command(crash).run(["--dishes=hf_abcdefghij", "--dishes=a b"]) == 1
    line = capsys.readouterr().err
    file = next(tmp_path.rglob("crash-bake-*.txt"))
    assert line.count("\n") == 1 and str(file) in line and line.startswith("tfgpt.bake: ZeroDivisionError: no luck")
    text = file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    for words in ("Traceback", "test_command_line.py", "ZeroDivisionError", "Python 3.", "numpy ", "'--dishes=a b'"):
        assert words in text
    for secret in ("hunter2", "token=abc", "wheat-and-rye", "hf_abcdefghij"):
        assert secret not in text and secret not in line


def test_debugging_prints_the_traceback_also_without_a_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFGPT_DEBUG", "1")
    monkeypatch.setenv("BAKERY_API_KEY", "wheat-and-rye")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert command(crash).run([]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert len(list(tmp_path.glob("crash-bake-*.txt"))) == 1


def test_a_command_line_can_be_pasted():
    line = shell_command("generate", "--model=my runs/it's", "--prompt=a\nb")
    assert shlex.split(line) == ["python", "-m", "tfgpt.generate", "--model=my runs/it's", "--prompt=a\nb"]


def test_a_path_that_the_system_refuses_is_the_users_to_change(capsys):
    def read(**settings):
        Path("x" * 5000).read_text()

    assert command(read).run([]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "File name too long" in line and len(line) < 400
