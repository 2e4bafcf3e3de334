"""Frozen, validated settings classes: one dataclass per concept, filled by flags, saved as JSON."""

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

LARGEST_COUNT = 2**31 - 1  # of a tensor's dimension
LARGEST_FLOAT = 3.4028234e38  # of float32
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
    """Returns a `dataclasses.field` with a help text and bounds. Numbers must be finite.

    Args:
        default: the default value; a tuple makes a repeatable flag.
        help: what the setting does, with its unit; it becomes the flag's `--help`.
        maximum: the largest number allowed, by default the largest float32 or dimension of a tensor.
        path: the value is a local path: `~` at its start becomes the home directory, an address such as
            gs://bucket/run is refused.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "path": path, "bounds": bounds}
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base class of settings classes; validates types, bounds and combinations when an instance is created.

    Raises:
        SettingError: a value has the wrong type, is out of bounds, or `check` refuses the combination.

    Example:

    >>> @dataclasses.dataclass(frozen=True)
    ... class BoxConfig(Settings):
    ...     width: float = setting(1.0, "Width in metres.", minimum=0.5)
    >>> BoxConfig(width=2).to_dict()
    {'width': 2.0}
    >>> BoxConfig(width=0.1)
    Traceback (most recent call last):
        ...
    tfgpt.common.errors.SettingError: --width: 0.1 is below the smallest allowed, 0.5
    """

    title: ClassVar[str] = "Settings"

    def __post_init__(self) -> None:
        for name, value in self.checked_values(vars(self)).items():
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raises `SettingError` for combinations that cannot work; subclasses override it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary of JSON values."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def checked_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns some of the settings, each validated alone."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise SettingError(name, f"no such setting in {cls.__name__}{did_you_mean(str(name), fields)}")
        hints = typing.get_type_hints(cls)
        return {name: validate_field(fields[name], hints[name], value) for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[SettingsClass], values: Mapping[str, Any]) -> SettingsClass:
        """Returns the settings of a dictionary of `to_dict`; other names keep their defaults."""
        return cls(**cls.checked_values(values))


def plain_type(hint: Any) -> tuple[type, bool]:
    """Returns the type and whether None is allowed: `int | None` → (int, True); `tuple[str, ...]` → (tuple, False)."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return plain_type(inner[0])[0], True
    return typing.get_origin(hint) or hint, False


def validate_field(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Returns the value, an integer given for a float converted; raises `SettingError` for a wrong type or value."""
    kind, optional = plain_type(hint)
    if value is None:
        if optional:
            return None
        raise SettingError(field.name, "a value is needed")
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            value = math.copysign(math.inf, value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingError(field.name, f"{short_repr(value)} is not of type {kind.__name__}")
    if isinstance(value, tuple) and not all(isinstance(item, str) for item in value):
        raise SettingError(field.name, f"{short_repr(value)} is not a list of texts")
    if field.metadata.get("path"):
        # A shell does not expand `~` after `--name=`.
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(value)):
            problem = f"{value} is not a path on this machine; give a path here, and copy from or to there"
            raise SettingError(field.name, problem)
        given, value = value, os.path.expanduser(str(value))
        if value.startswith("~") and not os.path.exists(value):
            raise SettingError(field.name, f"{given}: there is no such home directory; write the path out")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        near = did_you_mean(value, choices)
        raise SettingError(field.name, f"{short_repr(value)} is not one of {', '.join(choices)}{near}")
    if kind in (int, float) and (problem := out_of_bounds(value, **field.metadata.get("bounds", {}))):
        raise SettingError(field.name, problem)
    return value


def out_of_bounds(
    value: float,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> str:
    """Returns which bound of `setting` a number breaks, or "" for a valid number."""
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
    """Returns a positive integer of a file; raises `KeyError` where it is missing, `SettingError` for other values."""
    value = values.get(name)
    if value is None:
        raise KeyError(name)
    if type(value) is not int:
        raise SettingError(name, f"{short_repr(value)} is not a whole number")
    if problem := out_of_bounds(value, minimum=1, maximum=maximum):
        raise SettingError(name, problem)
    return value


@contextlib.contextmanager
def name_file_in_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises errors about the content of a file as `UserError` that names the file."""
    try:
        yield
    except SettingError as error:
        raise UserError(f"{path}: {error.name}: {error.problem}") from error
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: holds a value of the wrong kind ({error})") from error


def short_repr(value: Any) -> str:
    """Returns the `repr` of a value for an error message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # An integer of more than 4,300 digits.
        return "an integer of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"
