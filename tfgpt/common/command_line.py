"""Commands: flags from settings classes, `--help`, one line for an error, exit codes.

Each command has its own flags (not absl's global ones), so that one process can import several commands. Flags are
parsed and checked before TensorFlow is imported.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from absl import flags as absl_flags

from tfgpt.common.crash_report import redact_secrets, write_crash_file
from tfgpt.common.did_you_mean import did_you_mean, no_such_file
from tfgpt.common.errors import TfgptError, UserError
from tfgpt.common.flags import (
    Group,
    define_flags,
    flag_line,
    flag_strings,
    flags_help,
    group_settings,
    keyword_name,
    read_flag_file,
    settings_class,
)
from tfgpt.common.settings import short_repr
from tfgpt.common.standard_streams import open_standard_streams
from tfgpt.common.tf_logging import LEVEL

VERBOSITY = "1 also shows the notices of TensorFlow and its libraries."
COMMON_FLAGS = f"""\
Every command:
  --flagfile=FILE
      Read flags from a file, one per line; later flags win.
  --verbosity=INTEGER
      {VERBOSITY} (default: 0)
  --help
      Print this."""

# Errors of the system about a path that the user gave.
PATH_ERRNOS = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS,
)  # fmt: skip
# Python's errors about numbers, and ours.
NUMBER_ERRORS = {": invalid literal for int": "not a whole number", ": could not convert": "not a number"}


@dataclasses.dataclass(frozen=True)
class Command:
    """One `python -m tfgpt.NAME`.

    Attributes:
        name: the command's name.
        description: its module's docstring, which begins `--help`.
        groups: the settings classes whose fields become flags. A class is passed to the function under its
            name in snake case without `Config` (`OptimizerConfig` → `optimizer=`), an `Overrides` under its name.
        function: called with the settings; returns None or an exit code. It imports TensorFlow, not its module.
        flag_file_lines: given the path of a --flagfile and its lines, returns the lines that count.
        resumable: whether the command saves its work at a signal and the same command continues it. Its exit code is
            then 0, as launchers need it, else 128 and the signal's number.

    Example:

    >>> from tfgpt.corpus.config import CacheConfig
    >>> command = Command("cache", "Lists the cache.", [CacheConfig], print)
    >>> command.parse(["--unused_days=30"])["cache"].unused_days
    30.0
    """

    name: str
    description: str
    groups: Sequence[Group]
    function: Callable[..., int | None]
    flag_file_lines: Callable[[str, list[str]], list[str]] | None = None
    resumable: bool = False

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Returns the function's keyword arguments of a command line, flag files included; later flags win."""
        return self.to_settings(self.parse_flags(arguments))

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Parses, calls the function and returns the exit code; prints an error as one line on standard error.

        An unforeseen exception writes a crash file and ends with 1; TFGPT_DEBUG=1 prints its traceback.
        """
        open_standard_streams()
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        if threading.current_thread() is threading.main_thread():
            # Like Ctrl-C: temporary files are removed on the way out.
            signal.signal(signal.SIGTERM, raise_sigterm)
        try:
            if any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in arguments):
                print(self.help())
                return 0
            values = self.parse_flags(arguments)
            if values["verbosity"].value:
                os.environ[LEVEL] = "0"  # Also for the processes that this one starts.
            return self.function(**self.to_settings(values)) or 0
        except TfgptError as error:
            self.print_error(str(error))
            return error.exit_code
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, SigtermReceived) else signal.SIGINT
            if self.resumable:
                self.print_error(f"stopped by {number.name}; finished work is kept, the same command continues")
                return 0
            self.print_error(f"stopped by {number.name} before it was done")
            return 128 + number
        except BrokenPipeError:
            # The reader of the output has closed the pipe (`| head`).
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            return 0
        except OSError as error:
            if error.errno not in PATH_ERRNOS or not error.filename:
                return self.report_crash(arguments, error)
            missing = error.errno == errno.ENOENT and isinstance(error.filename, str)
            problem = no_such_file(error.filename) if missing else f"{short_repr(error.filename)}: {error.strerror}"
            self.print_error(problem)
            return UserError.exit_code
        except Exception as error:
            return self.report_crash(arguments, error)

    def help(self) -> str:
        """Returns the text of --help: the flags by group, with defaults."""
        usage = f"python -m tfgpt.{self.name} [--flag=value …] [--flagfile=FILE]"
        flags = [line for group in self.groups for line in flags_help(group)]
        return "\n".join([usage, "", self.description.strip(), "", *flags, COMMON_FLAGS])

    def flag_file(self, settings: dict[str, Any]) -> str:
        """Returns the text of a flag file that gives `settings` again: the flags.cfg of a run directory."""
        lines = []
        for group in self.groups:
            lines.append(f"# {settings_class(group).title}")
            lines += [flag_line(name, value) for name, value in flags_of(group, settings)]
        return "\n".join(lines) + "\n"

    def arguments(self, settings: dict[str, Any]) -> list[str]:
        """Returns the command-line arguments that give `settings` again."""
        return [f"--{name}={value}" for group in self.groups for name, value in flags_of(group, settings)]

    def flag_values(self) -> absl_flags.FlagValues:
        """Returns the command's flags, not parsed."""
        values = absl_flags.FlagValues()
        for group in self.groups:
            define_flags(group, values)
        absl_flags.DEFINE_integer("verbosity", 0, VERBOSITY, 0, 1, flag_values=values)
        absl_flags.DEFINE_boolean("help", False, "Print this.", flag_values=values, short_name="h")
        return values

    def parse_flags(self, arguments: Sequence[str]) -> absl_flags.FlagValues:
        values = self.flag_values()
        try:
            rest = values([self.name, *self.expand_flag_files(values, arguments)])
        except absl_flags.UnrecognizedFlagError as error:
            raise UserError(
                f"--{error.flagname}: no such flag{did_you_mean(error.flagname, [*values, 'flagfile'], '--')}"
                f" (python -m tfgpt.{self.name} --help lists them)"
            ) from error
        except absl_flags.Error as error:
            problem = " ".join(str(error).split()).removeprefix("flag ")
            for phrase, words in NUMBER_ERRORS.items():
                problem = f"{problem.split(phrase)[0]}: {words}" if phrase in problem else problem
            raise UserError(problem) from error
        if len(rest) > 1:
            raise UserError(f"{rest[1]}: an argument without a flag; flags are written --name=value")
        return values

    def to_settings(self, values: absl_flags.FlagValues) -> dict[str, Any]:
        return {keyword_name(group): group_settings(group, values) for group in self.groups}

    def expand_flag_files(self, values: absl_flags.FlagValues, arguments: Sequence[str]) -> Iterator[str]:
        """Yields the arguments, each --flagfile expanded; a repeatable flag that is given replaces the file's."""
        given = {flag_name(argument) for argument in arguments}
        remaining = iter(arguments)
        for argument in remaining:
            if flag_name(argument) != "flagfile":
                yield argument
                continue
            path = argument.split("=", 1)[1] if "=" in argument else next(remaining, "")
            flags = read_flag_file(path)
            for flag in self.flag_file_lines(path, flags) if self.flag_file_lines else flags:
                name = flag_name(flag)
                repeatable = name in values and isinstance(values[name], absl_flags.MultiFlag)
                if not (repeatable and name in given):
                    yield flag

    def report_crash(self, arguments: Sequence[str], error: Exception) -> int:
        crash = write_crash_file(self.name, arguments, error)
        if crash is None or os.environ.get("TFGPT_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        message = redact_secrets(f"{type(error).__name__}: {error}")[:300]
        where = f"; please report it with {crash}" if crash else ""
        self.print_error(f"{message}; this is a fault of tfgpt{where}")
        return 1

    def print_error(self, text: str) -> None:
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))
        print(f"tfgpt.{self.name}: {line}", file=sys.stderr)


class SigtermReceived(KeyboardInterrupt):
    """SIGTERM: a command ends as with Ctrl-C, with another exit code."""


def raise_sigterm(number: int, frame: FrameType | None) -> None:
    raise SigtermReceived


def shell_command(command: str, *arguments: str) -> str:
    """Returns `python -m tfgpt.COMMAND …` for pasting into a shell."""
    return shlex.join(["python", "-m", f"tfgpt.{command}", *arguments])


def flag_name(argument: str) -> str:
    """Returns the name of a flag, `--noema=1` → "noema"; "" for another argument."""
    return argument.lstrip("-").split("=", 1)[0] if argument.startswith("-") else ""


def flags_of(group: Group, settings: dict[str, Any]) -> list[tuple[str, str]]:
    value = settings[keyword_name(group)]
    fields = value if isinstance(value, dict) else value.to_dict()
    return [(name, item) for name, content in fields.items() for item in flag_strings(content)]
