"""What every command shares: flags from settings classes, `--help` by concept, one line for an error, exit codes.

Each command has flags of its own (not absl's global ones), so that several commands can be imported by one process.
Flags are parsed and checked before anything imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from tfgpt.common.errors import SettingError, TfgptError, UserError
from tfgpt.common.settings import Settings, field_types, plain_type


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
    """

    def __init__(
        self,
        name: str,
        description: str,
        groups: Sequence[Group],
        function: Callable[..., int | None],
        flag_file_lines: Callable[[str, list[str]], list[str]] | None = None,
    ):
        self.name, self.description, self.groups, self.function = name, description, tuple(groups), function
        self.flag_file_lines = flag_file_lines

    def flag_values(self) -> absl_flags.FlagValues:
        """The command's flags, none parsed."""
        values = absl_flags.FlagValues()
        for group in self.groups:
            define_group(group, values)
        absl_flags.DEFINE_boolean("help", False, "Print this.", flag_values=values, short_name="h")
        return values

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
        except absl_flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error
        if len(rest) > 1:
            raise UserError(f"{rest[1]}: an argument without a flag; flags are written --name=value")
        return values

    def settings_of(self, values: absl_flags.FlagValues) -> dict[str, Any]:
        """The settings that parsed flags stand for."""
        keywords: dict[str, Any] = {}
        for group in self.groups:
            if isinstance(group, Overrides):
                given = {name: flag_value(values, name) for name in flag_names(group)}
                keywords[group.name] = {name: value for name, value in given.items() if value is not None}
            else:
                keywords[keyword(group)] = group(**{name: flag_value(values, name) for name in flag_names(group)})
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
            if not os.path.isfile(os.path.expanduser(path)):
                raise UserError(f"--flagfile: {path or '(nothing)'} is not a file")
            try:
                lines = values.read_flags_from_files([f"--flagfile={path}"], force_gnu=True)
            except (absl_flags.Error, UnicodeDecodeError, OSError) as error:
                raise UserError(f"--flagfile: {path}: {' '.join(str(error).split())}") from error
            if self.flag_file_lines is not None:
                lines = self.flag_file_lines(path, lines)
            for line in lines:
                name = flag_name(line)
                repeatable = name in values and isinstance(values[name], absl_flags.MultiFlag)
                if not (repeatable and name in on_line):
                    read.append(line)
        return read

    def flag_file(self, settings: dict[str, Any]) -> str:
        """The text of a flag file that gives `settings` again: what a run directory keeps as flags.cfg."""
        lines = []
        for group in self.groups:
            name = group.name if isinstance(group, Overrides) else keyword(group)
            value = settings[name]
            fields = value.items() if isinstance(value, dict) else value.to_dict().items()
            title = group.settings.title if isinstance(group, Overrides) else group.title
            lines.append(f"# {title}")
            for field, content in fields:
                lines += [f"--{field}={item}" for item in flag_items(content)]
        return "\n".join(lines) + "\n"

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
        parts.append("  --help\n      Print this.")
        return "\n".join(parts)

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Parses, calls the function and returns the exit code; a known error becomes one line on standard error."""
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        if threading.current_thread() is threading.main_thread():
            # As Ctrl-C: what is being written beside is cleaned up on the way out.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            if any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in arguments):
                print(self.help())
                return 0
            return self.function(**self.parse(arguments)) or 0
        except TfgptError as error:
            print(f"tfgpt.{self.name}: {' '.join(str(error).split())}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print(f"tfgpt.{self.name}: stopped; what was finished is kept, the same command goes on", file=sys.stderr)
            return 0
        except BrokenPipeError:
            # The reader of our output has left (`| head`): nothing to say and nobody to say it to.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            return 0


def keyword(settings: type[Settings]) -> str:
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
        if field.metadata.get("choices"):
            absl_flags.DEFINE_enum(name, default, list(field.metadata["choices"]), text, flag_values=values)
            continue
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


def flag_items(value: Any) -> list[str]:
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
        items = [] if field.default is dataclasses.MISSING else flag_items(field.default)
        default = f"default: {', '.join(items) if items and items != [''] else 'none'}"
    repeat = "; repeatable" if kind is tuple else ""
    text = f"{field.metadata.get('help', '')} ({default}{repeat})"
    wrapped = textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")
    return [f"  --{field.name}={words}", *wrapped]


__all__ = ["Command", "Overrides", "SettingError"]
