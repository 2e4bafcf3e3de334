"""Frozen, validated settings: one dataclass a concept, filled by flags, carried by checkpoints as JSON."""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, Union

from tfgpt.common.errors import SettingError

SettingsClass = TypeVar("SettingsClass", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field that knows its help text and its bounds (both inclusive).

    Args:
        default: the default value; a tuple makes a repeatable flag.
        help: what the setting does, with its unit; it becomes the flag's `--help`.
        choices: the strings allowed.
        minimum: the smallest number allowed.
        maximum: the largest number allowed.
        path: it names a file or folder of this machine: `~` at its start becomes the home directory, an address
            such as gs://bucket/run is refused.

    Returns:
        A `dataclasses.field`.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum, "path": path}
    return dataclasses.field(default=default, metadata=metadata)


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
            object.__setattr__(self, field.name, checked(field, hints[field.name], value))
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
    def from_dict(cls: type[SettingsClass], values: Mapping[str, Any]) -> SettingsClass:
        """The reverse of `to_dict`; an unknown name raises `SettingError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise SettingError(name, f"no such setting in {cls.__name__}")
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


def checked(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
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
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingError(field.name, f"{value!r} is not of type {kind.__name__}")
    bounds = field.metadata
    if bounds.get("path"):
        value = local_path(field.name, str(value))
    if bounds.get("choices") and value not in bounds["choices"]:
        raise SettingError(field.name, f"{value!r} is not one of {', '.join(bounds['choices'])}")
    if kind in (int, float):
        if value != value:
            raise SettingError(field.name, "is not a number")
        if bounds.get("minimum") is not None and value < bounds["minimum"]:
            raise SettingError(field.name, f"{value} is below the smallest allowed, {bounds['minimum']}")
        if bounds.get("maximum") is not None and value > bounds["maximum"]:
            raise SettingError(field.name, f"{value} is above the largest allowed, {bounds['maximum']}")
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
