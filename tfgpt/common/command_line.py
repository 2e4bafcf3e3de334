"""What every command shares: flags from settings classes, `--help` by concept, one line for an error, exit codes.

Each command has flags of its own (not absl's global ones), so that several commands can be imported by one process.
Flags are parsed and checked before anything imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from absl import flags as absl_flags

from tfgpt.common.crash_report import redact_secrets, write_crash_file
from tfgpt.common.did_you_mean import did_you_mean, no_such_file
from tfgpt.common.errors import SettingError, TfgptError, UserError
from tfgpt.common.flag_files import flag_line, read_flag_file
from tfgpt.common.settings import Settings, field_types, plain_type, short_repr
from tfgpt.common.standard_streams import open_standard_streams
from tfgpt.common.tf_logging import show_notices

VERBOSITY = "1 also shows the notices of TensorFlow and its libraries."

# What the system says of a path that a person gave, where nobody expected it.
PATH_ERRNOS = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS,
)  # fmt: skip
# How Python refuses what is no number, and how we say it.
PYTHON_WORDS = {": invalid literal for int": "not a whole number", ": could not convert": "not a number"}


@dataclasses.dataclass(frozen=True)
class Overrides:
    """A group of flags that are all optional and fill a dictionary: only those given are in it.

    Attributes:
        settings: the settings class whose fields become flags.
        name: the keyword under which the dictionary is passed to the command's function.
        default_words: what `--help` says of a flag that is not given.
        exclude: fields that are no flags.
    """

    settings: type[Settings]
    name: str
    default_words: str = "default: as the preset says"
    exclude: tuple[str, ...] = ()


Group = type[Settings] | Overrides


class Command:
    """One `python -m tfgpt.NAME`.

    Args:
        name: the command's name.
        description: its module's docstring; the first paragraph heads `--help`.
        groups: the settings classes whose fields become flags. A class is passed to the function under its
            name in snake case without `Config` (`OptimizerConfig` → `optimizer=`), an `Overrides` under its name.
        function: called with the settings; returns None or an exit code. It imports TensorFlow, not its module.
        flag_file_lines: given the path of a --flagfile and its lines, returns the lines that count.
        resumable: whether the command saves when a signal stops it, so that the same command goes on: then such a stop
            is exit code 0, as launchers need it; else it is 128 and the signal's number.
    """

    def __init__(
        self,
        name: str,
        description: str,
        groups: Sequence[Group],
        function: Callable[..., int | None],
        flag_file_lines: Callable[[str, list[str]], list[str]] | None = None,
        resumable: bool = False,
    ):
        self.name, self.description, self.groups, self.function = name, description, tuple(groups), function
        self.flag_file_lines, self.resumable = flag_file_lines, resumable

    def flag_values(self) -> absl_flags.FlagValues:
        """The command's flags, none parsed."""
        values = absl_flags.FlagValues()
        for group in self.groups:
            define_group(group, values)
        absl_flags.DEFINE_integer("verbosity", 0, VERBOSITY, 0, 1, flag_values=values)
        absl_flags.DEFINE_boolean("help", False, "Print this.", flag_values=values, short_name="h")
        return values

    def names(self) -> list[str]:
        """The names of the flags."""
        return [*(name for group in self.groups for name in flag_names(group)), "flagfile", "verbosity", "help"]

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The function's keyword arguments from the command line, flag files included; later flags win.

        Raises:
            UserError: an unknown flag, a wrong type or value; the line names the flag.
        """
        return self.settings_of(self.parsed(arguments))

    def parsed(self, arguments: Sequence[str]) -> absl_flags.FlagValues:
        """The parsed flags themselves."""
        values = self.flag_values()
        try:
            rest = values([self.name, *self.with_flag_files(values, list(arguments))])
        except absl_flags.UnrecognizedFlagError as error:
            raise UserError(
                f"--{error.flagname}: no such flag{did_you_mean(error.flagname, self.names(), '--')}"
                f" (python -m tfgpt.{self.name} --help lists them)"
            ) from error
        except absl_flags.Error as error:
            said = " ".join(str(error).split()).removeprefix("flag ")
            for python, words in PYTHON_WORDS.items():
                if python in said:
                    said = f"{said.split(python)[0]}: {words}"
            raise UserError(said) from error
        if len(rest) > 1:
            raise UserError(f"{rest[1]}: an argument without a flag; flags are written --name=value")
        return values

    def settings_of(self, values: absl_flags.FlagValues) -> dict[str, Any]:
        """The settings that parsed flags stand for."""
        keywords: dict[str, Any] = {}
        for group in self.groups:
            if isinstance(group, Overrides):
                given = {name: flag_value(values, name) for name in flag_names(group)}
                given = {name: value for name, value in given.items() if value is not None}
                keywords[group.name] = group.settings.checked_values(given)
            else:
                keywords[keyword_name(group)] = group(**{name: flag_value(values, name) for name in flag_names(group)})
        return keywords

    def with_flag_files(self, values: absl_flags.FlagValues, arguments: list[str]) -> list[str]:
        """The arguments with every --flagfile read in its place.

        A repeatable flag given on the command line replaces the flag file's, as every other flag does; without
        this, absl would add the two lists up.
        """
        on_line = {flag_name(argument) for argument in arguments}
        read: list[str] = []
        position = 0
        while position < len(arguments):
            argument = arguments[position]
            position += 1
            if flag_name(argument) != "flagfile":
                read.append(argument)
                continue
            if "=" in argument:
                path = argument.split("=", 1)[1]
            else:
                path = arguments[position] if position < len(arguments) else ""
                position += 1
            flags = read_flag_file(path)
            for flag in self.flag_file_lines(path, flags) if self.flag_file_lines else flags:
                name = flag_name(flag)
                repeatable = name in values and isinstance(values[name], absl_flags.MultiFlag)
                if not (repeatable and name in on_line):
                    read.append(flag)
        return read

    def titled_flags(self, settings: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
        """For each group its title and the flags, name and value, that give its part of `settings` again."""
        groups = []
        for group in self.groups:
            value = settings[group.name if isinstance(group, Overrides) else keyword_name(group)]
            fields = value if isinstance(value, dict) else value.to_dict()
            title = group.settings.title if isinstance(group, Overrides) else group.title
            flags = [(field, item) for field, content in fields.items() for item in flag_strings(content)]
            groups.append((title, flags))
        return groups

    def flag_file(self, settings: dict[str, Any]) -> str:
        """The text of a flag file that gives `settings` again: what a run directory keeps as flags.cfg."""
        lines = []
        for title, flags in self.titled_flags(settings):
            lines += [f"# {title}", *(flag_line(name, value) for name, value in flags)]
        return "\n".join(lines) + "\n"

    def arguments(self, settings: dict[str, Any]) -> list[str]:
        """The arguments of a process that gives `settings` again."""
        return [f"--{name}={value}" for _, flags in self.titled_flags(settings) for name, value in flags]

    def help(self) -> str:
        """The text of --help: the flags by concept, with defaults."""
        parts = [f"python -m tfgpt.{self.name} [--flag=value …] [--flagfile=FILE]", "", self.description.strip(), ""]
        for group in self.groups:
            cls = group.settings if isinstance(group, Overrides) else group
            parts.append(f"{cls.title}:")
            fields = {field.name: field for field in dataclasses.fields(cls)}
            for name in flag_names(group):
                field = fields[name]
                kind, _ = plain_type(field_types(cls)[name])
                parts += flag_help(field, kind, group.default_words if isinstance(group, Overrides) else None)
            parts.append("")
        parts += ["Every command:"]
        parts.append("  --flagfile=FILE\n      Read flags from a file, one a line; flags that come later win.")
        parts.append(f"  --verbosity=INTEGER\n      {VERBOSITY} (default: 0)")
        parts.append("  --help\n      Print this.")
        return "\n".join(parts)

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Parses, calls the function and returns the exit code; an error becomes one line on standard error.

        An exception that is nobody's mistake leaves a crash file and ends with 1; TFGPT_DEBUG=1 prints its traceback.
        """
        open_standard_streams()
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        if threading.current_thread() is threading.main_thread():
            # As Ctrl-C: what is being written beside is cleaned up on the way out.
            signal.signal(signal.SIGTERM, terminate)
        try:
            if any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in arguments):
                print(self.help())
                return 0
            values = self.parsed(arguments)
            if values["verbosity"].value:
                show_notices()
            return self.function(**self.settings_of(values)) or 0
        except TfgptError as error:
            self.complain(str(error))
            return error.exit_code
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, SigtermReceived) else signal.SIGINT
            if self.resumable:
                self.complain(f"stopped by {number.name}; what was finished is kept, the same command goes on")
                return 0
            self.complain(f"stopped by {number.name} before it was done")
            return 128 + number
        except BrokenPipeError:
            # The reader of our output has left (`| head`): nothing to say and nobody to say it to.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            return 0
        except OSError as error:
            if error.errno not in PATH_ERRNOS or not error.filename:
                return self.crashed(arguments, error)
            missing = error.errno == errno.ENOENT and isinstance(error.filename, str)
            self.complain(
                no_such_file(error.filename) if missing else f"{short_repr(error.filename)}: {error.strerror}"
            )
            return UserError.exit_code
        except Exception as error:
            return self.crashed(arguments, error)

    def crashed(self, arguments: Sequence[str], error: Exception) -> int:
        """Leaves a crash file, says so in one line, and returns the exit code."""
        crash = write_crash_file(self.name, arguments, error)
        if crash is None or os.environ.get("TFGPT_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        message = redact_secrets(f"{type(error).__name__}: {error}")[:300]
        where = f"; please report it with {crash}" if crash else ""
        self.complain(f"{message}; this is a fault of tfgpt{where}")
        return 1

    def complain(self, text: str) -> None:
        """One line on standard error, whatever characters a file's name or a flag's value has."""
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))
        print(f"tfgpt.{self.name}: {line}", file=sys.stderr)


class SigtermReceived(KeyboardInterrupt):
    """SIGTERM: a command ends as with Ctrl-C, with another exit code."""


def terminate(number: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM."""
    raise SigtermReceived


def shell_command(command: str, *arguments: str) -> str:
    """`python -m tfgpt.COMMAND …` as it can be pasted into a shell: what a command prints as the next one."""
    return shlex.join(["python", "-m", f"tfgpt.{command}", *arguments])


def keyword_name(settings: type[Settings]) -> str:
    """`OptimizerConfig` → "optimizer"; `EarlyStoppingConfig` → "early_stopping"."""
    name = settings.__name__.removesuffix("Config")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def flag_names(group: Group) -> list[str]:
    """The flags that a group defines."""
    if isinstance(group, Overrides):
        return [field.name for field in dataclasses.fields(group.settings) if field.name not in group.exclude]
    return [field.name for field in dataclasses.fields(group)]


def define_group(group: Group, values: absl_flags.FlagValues) -> None:
    """Defines a flag for every field."""
    overrides = isinstance(group, Overrides)
    cls = group.settings if isinstance(group, Overrides) else group
    hints = field_types(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in flag_names(group):
        field = fields[name]
        kind, _ = plain_type(hints[name])
        text = field.metadata.get("help", "")
        if kind is tuple:
            default = None if overrides else list(getattr(cls, name))
            absl_flags.DEFINE_multi_string(name, default, text, flag_values=values)
            continue
        default = None if overrides or field.default is dataclasses.MISSING else field.default
        define = {
            int: absl_flags.DEFINE_integer,
            float: absl_flags.DEFINE_float,
            bool: absl_flags.DEFINE_boolean,
            str: absl_flags.DEFINE_string,
        }[kind]
        define(name, default, text, flag_values=values)


def flag_value(values: absl_flags.FlagValues, name: str) -> Any:
    """The parsed value; an empty string for an optional number never gets here (absl refuses it)."""
    value = values[name].value
    return tuple(value) if isinstance(value, list) else value


def flag_name(argument: str) -> str:
    """`--noema=1` → "noema"; "" for what is no flag."""
    return argument.lstrip("-").split("=", 1)[0] if argument.startswith("-") else ""


def flag_strings(value: Any) -> list[str]:
    """How a value is written in a flag file: nothing for None, a line an item for a list."""
    if value is None:
        return []
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [str(value)]


def flag_help(field: dataclasses.Field, kind: type, default_words: str | None) -> list[str]:
    """The lines of --help for one flag."""
    words = {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT", tuple: "TEXT"}[kind]
    if field.metadata.get("choices"):
        words = "|".join(field.metadata["choices"])
    default = default_words
    if default is None:
        items = [] if field.default is dataclasses.MISSING else flag_strings(field.default)
        default = f"default: {', '.join(items) if items and items != [''] else 'none'}"
    repeat = "; repeatable" if kind is tuple else ""
    text = f"{field.metadata.get('help', '')} ({default}{repeat})"
    wrapped = textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")
    return [f"  --{field.name}={words}", *wrapped]


__all__ = ["Command", "Overrides", "SettingError"]
