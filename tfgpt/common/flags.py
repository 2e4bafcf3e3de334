"""Flags of settings classes: definition, values, help and flag files."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import UserError
from tfgpt.common.settings import Settings, plain_type


@dataclasses.dataclass(frozen=True)
class Overrides:
    """A group of optional flags that fill a dictionary with those that are given.

    Attributes:
        settings: the settings class whose fields become flags.
        name: the keyword under which the dictionary is passed to the command's function.
        default_words: the default in `--help`.
        exclude: fields without a flag.

    Example:

    >>> from tfgpt.generation.config import SamplingConfig
    >>> flag_names(Overrides(SamplingConfig, "sampling", exclude=("seed",)))[:2]
    ['max_new_tokens', 'temperature']
    """

    settings: type[Settings]
    name: str
    default_words: str = "default: as the preset says"
    exclude: tuple[str, ...] = ()


Group = type[Settings] | Overrides

DEFINE: Mapping[type, Callable[..., Any]] = {
    int: absl_flags.DEFINE_integer,
    float: absl_flags.DEFINE_float,
    bool: absl_flags.DEFINE_boolean,
    str: absl_flags.DEFINE_string,
    tuple: absl_flags.DEFINE_multi_string,
}
PLACEHOLDERS = {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT", tuple: "TEXT"}


def settings_class(group: Group) -> type[Settings]:
    return group.settings if isinstance(group, Overrides) else group


def keyword_name(group: Group) -> str:
    """Returns a group's keyword: its name, or `EarlyStoppingConfig` → "early_stopping"."""
    if isinstance(group, Overrides):
        return group.name
    name = group.__name__.removesuffix("Config")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def flag_names(group: Group) -> list[str]:
    return [field.name for field, _ in flag_fields(group)]


def flag_fields(group: Group) -> list[tuple[dataclasses.Field, type]]:
    """Returns the field and type of each flag of a group."""
    excluded = group.exclude if isinstance(group, Overrides) else ()
    hints = typing.get_type_hints(settings_class(group))
    fields = dataclasses.fields(settings_class(group))
    return [(field, plain_type(hints[field.name])[0]) for field in fields if field.name not in excluded]


def define_flags(group: Group, values: absl_flags.FlagValues) -> None:
    for field, kind in flag_fields(group):
        default = None if isinstance(group, Overrides) or field.default is dataclasses.MISSING else field.default
        default = list(default) if isinstance(default, tuple) else default
        DEFINE[kind](field.name, default, field.metadata.get("help", ""), flag_values=values)


def group_settings(group: Group, values: absl_flags.FlagValues) -> Settings | dict[str, Any]:
    """Returns the settings of parsed flags; of `Overrides` the dictionary of those that are given."""
    given = {name: values[name].value for name in flag_names(group)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if isinstance(group, Overrides):
        return group.settings.checked_values({name: value for name, value in given.items() if value is not None})
    return group(**given)


def flag_strings(value: Any) -> list[str]:
    """Returns the values of a setting's flags: none for None, one per item for a list."""
    if isinstance(value, bool):
        return [str(value).lower()]
    items = value if isinstance(value, (list, tuple)) else [value]
    return [str(item) for item in items if item is not None]


def flags_help(group: Group) -> list[str]:
    lines = [f"{settings_class(group).title}:"]
    for field, kind in flag_fields(group):
        placeholder = "|".join(field.metadata.get("choices") or (PLACEHOLDERS[kind],))
        if isinstance(group, Overrides):
            default = group.default_words
        else:
            items = [] if field.default is dataclasses.MISSING else flag_strings(field.default)
            default = f"default: {', '.join(items) or 'none'}"
        repeat = "; repeatable" if kind is tuple else ""
        text = f"{field.metadata.get('help', '')} ({default}{repeat})"
        lines.append(f"  --{field.name}={placeholder}")
        lines += textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")
    return [*lines, ""]


def flag_line(name: str, value: str) -> str:
    """Returns the line of a flag file for any flag and value.

    A value with line breaks, with blanks around it, or in double quotes is written as a JSON string.
    """
    try:
        value.encode()
        ascii_only = False
    except UnicodeEncodeError:
        ascii_only = True  # Bytes of a file name that are not UTF-8: JSON can express them, UTF-8 cannot.
    plain = value == value.strip() and "\n" not in value and "\r" not in value and not is_quoted(value)
    return f"--{name}={value if plain and not ascii_only else json.dumps(value, ensure_ascii=ascii_only)}"


def is_quoted(value: str) -> bool:
    return len(value) >= 2 and value[0] == value[-1] == '"'


def read_flag_file(path: str, within: tuple[Path, ...] = ()) -> list[str]:
    """Returns the flags of a flag file, and of those that it names, as arguments.

    Lines that begin with # or // are comments. `within` holds the files that name this one.
    """
    file = Path(path).expanduser()
    if not path or not file.is_file():
        raise UserError(f"--flagfile: {no_such_file(path, 'is not a file') if path else 'a file is needed'}")
    if file.resolve() in within:
        raise UserError(f"--flagfile: {path}: names itself")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"--flagfile: {path}: {error}") from error
    flags: list[str] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith(("#", "//")):
            continue
        name, equals, value = line.partition("=")
        if is_quoted(value):
            try:
                value = json.loads(value, strict=False)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"--flagfile: {path}, line {number}: a value in quotes is read as a JSON string ({error.msg}); "
                    "without the quotes it is taken as it stands"
                ) from error
        if name.lstrip("-") == "flagfile":
            flags += read_flag_file(value, (*within, file.resolve()))
        else:
            flags.append(name + equals + value)
    return flags
