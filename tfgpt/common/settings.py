"""Frozen, validated settings: one dataclass a concept, filled by flags, carried by checkpoints as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar, Union

from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError, UserError

LARGEST_COUNT = 2**31 - 1  # of what a tensor's shape may have
LARGEST_FLOAT = 3.4028234e38  # in float32
SettingsClass = TypeVar("SettingsClass", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field that knows its help text and its bounds. Numbers are finite whatever the bounds.

    Args:
        default: the default value; a tuple makes a repeatable flag.
        help: what the setting does, with its unit; it becomes the flag's `--help`.
        choices: the strings allowed.
        minimum: the smallest number allowed.
        maximum: the largest number allowed; by default the largest that float32 or the shape of a tensor can have.
        above: a number that the value must be greater than.
        below: a number that the value must be less than.
        path: it names a file or folder of this machine: `~` at its start becomes the home directory, an address
            such as gs://bucket/run is refused.

    Returns:
        A `dataclasses.field`.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "path": path, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all settings classes; checks types and bounds when made, then calls `check`.

    Raises:
        SettingError: a value has the wrong type, is out of bounds, or `check` refuses the combination.
    """

    title: ClassVar[str] = "Settings"

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, validate_field(field, hints[field.name], value))
        self.check()

    def check(self) -> None:
        """Refuses combinations that cannot work; override and raise `SettingError`."""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain JSON values."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def checked_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Some of the settings, each checked by itself.

        Raises:
            SettingError: an unknown name, a wrong type or a value out of bounds.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise SettingError(name, f"no such setting in {cls.__name__}{did_you_mean(str(name), fields)}")
        hints = field_types(cls)
        return {name: validate_field(fields[name], hints[name], value) for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[SettingsClass], values: Mapping[str, Any]) -> SettingsClass:
        """The reverse of `to_dict`; an unknown name raises `SettingError`."""
        cls.checked_values(values)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def field_types(cls: type) -> dict[str, Any]:
    """The resolved type hints of a settings class."""
    return typing.get_type_hints(cls)


def plain_type(hint: Any) -> tuple[type, bool]:
    """`int | None` → (int, True); `tuple[str, ...]` → (tuple, False)."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return plain_type(inner[0])[0], True
    return typing.get_origin(hint) or hint, False


def validate_field(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """The value, converted where that loses nothing (an integer given for a float).

    Raises:
        SettingError: wrong type or out of bounds.
    """
    kind, optional = plain_type(hint)
    if value is None:
        if optional:
            return None
        raise SettingError(field.name, "a value is needed")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = as_float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingError(field.name, f"{short_repr(value)} is not of type {kind.__name__}")
    if isinstance(value, tuple) and not all(isinstance(item, str) for item in value):
        raise SettingError(field.name, f"{short_repr(value)} is not a list of texts")
    bounds = field.metadata
    if bounds.get("path"):
        value = local_path(field.name, str(value))
    if bounds.get("choices") and value not in bounds["choices"]:
        near = did_you_mean(value, bounds["choices"])
        raise SettingError(field.name, f"{short_repr(value)} is not one of {', '.join(bounds['choices'])}{near}")
    if kind in (int, float) and (problem := out_of_bounds(value, **numeric_bounds(bounds))):
        raise SettingError(field.name, problem)
    return value


def local_path(name: str, value: str) -> str:
    """A path with the home directory in the place of `~`: no shell puts it there behind `--name=`.

    Raises:
        SettingError: it is the address of another machine's file, which Python would take for a folder here called
            "gs:", or nobody's home.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise SettingError(name, f"{value} is no place on this machine; give a path here, and copy from or to there")
    expanded = os.path.expanduser(value)
    if expanded.startswith("~") and not os.path.exists(expanded):
        raise SettingError(name, f"{value}: there is no such home directory; write the path out")
    return expanded


def numeric_bounds(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds of a field's metadata."""
    return {name: metadata.get(name) for name in ("minimum", "maximum", "above", "below")}


def out_of_bounds(
    value: float,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> str:
    """What is wrong with a number, or "": it is not finite, or breaks a bound of `setting`."""
    if value != value:
        return "is not a number"
    if isinstance(value, float) and math.isinf(value):
        return "is not a finite number"
    if maximum is None:
        maximum = LARGEST_FLOAT if isinstance(value, float) else LARGEST_COUNT
    if minimum is None and above is None:
        minimum = -maximum
    if minimum is not None and value < minimum:
        return f"{short_repr(value)} is below the smallest allowed, {minimum}"
    if above is not None and value <= above:
        return f"{short_repr(value)} is too small; it must be above {above}"
    if value > maximum:
        return f"{short_repr(value)} is above the largest allowed, {maximum}"
    if below is not None and value >= below:
        return f"{short_repr(value)} is too large; it must be below {below}"
    return ""


def positive_integer(values: Mapping[str, Any], name: str, maximum: int = LARGEST_COUNT) -> int:
    """A positive whole number of a file that is reckoned with before a settings class has checked it.

    Raises:
        KeyError: it is missing.
        SettingError: it is something else.
    """
    value = values.get(name)
    if value is None:
        raise KeyError(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise SettingError(name, f"{short_repr(value)} is no whole number")
    if problem := out_of_bounds(value, minimum=1, maximum=maximum):
        raise SettingError(name, problem)
    return value


@contextlib.contextmanager
def name_file_in_errors(path: str | os.PathLike) -> Iterator[None]:
    """While a file's content is turned into settings: what is wrong with it is one line that names the file.

    Raises:
        UserError: a settings class refuses a value, or a value is of a kind that cannot be reckoned with.
    """
    try:
        yield
    except SettingError as error:
        raise UserError(f"{path}: {error.name}: {error.problem}") from error
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: holds a value of the wrong kind ({error})") from error


def as_float(value: int) -> float:
    """An integer as a float; infinity where it has too many digits."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def short_repr(value: Any) -> str:
    """A value in an error's line, shortened."""
    try:
        text = repr(value)
    except ValueError:  # An integer of more than 4,300 digits.
        return "an integer of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"
