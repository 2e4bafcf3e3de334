"""The search space: a small TOML file that names flags of `train` and the values to try. No TensorFlow.

    [fixed]                      # for every trial, over the flags of the command
    schedule = "wsd"

    [search.learning_rate]       # a flag's name
    type = "float"               # float, int, bool; not needed with choices
    min = 1e-3
    max = 1e-1
    scale = "log"                # linear (default) or log
    # step = 0.1                 # linear: the distance of neighbours; log: their ratio

    [search.batch_size]
    choices = [4, 8, 16]

    [search.adam_learning_rate]  # searched where the condition holds; elsewhere the flag has its default
    type = "float"
    min = 1e-3
    max = 1e-2
    scale = "log"
    when = { optimizer = ["muon"] }

    [architecture]               # every combination of these that has about so many parameters
    parameters = 1_500_000       # or: training_flops_per_token = 9e6
    tolerance = 0.05
    num_layers = [2, 3, 4, 6]
    head_dim = [32, 64]

TOML rather than YAML: YAML reads 1e-3 as text, and Python reads TOML by itself (since 3.11).
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from tfgpt.common.did_you_mean import cannot_read, did_you_mean
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.flags import Group, Overrides, flag_names, keyword_name
from tfgpt.common.settings import Settings, field_types, out_of_bounds, plain_type, validate_field

KEYS = ("type", "min", "max", "step", "scale", "choices", "when")
TYPES = {"float": float, "int": int, "bool": bool}
ARCHITECTURE = "architecture"
ARCHITECTURE_KEYS = (
    "parameters", "training_flops_per_token", "tolerance", "num_layers", "head_dim", "width_multiple",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One thing that is searched.

    Attributes:
        name: the flag without its dashes, or "architecture".
        kind: "float", "int", "bool" or "choice".
        minimum, maximum: of a number, both inclusive.
        step: between neighbours (linear) or as a ratio (log); None: any value.
        scale: "linear" or "log".
        choices: the values of a choice.
        when: (name of another parameter, the values of it under which this one counts), all of which must hold.
    """

    name: str
    kind: str
    minimum: float | int | None = None
    maximum: float | int | None = None
    step: float | int | None = None
    scale: str = "linear"
    choices: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def examples(self) -> tuple[Any, ...]:
        """Values that must be allowed if all are."""
        if self.kind == "choice":
            return self.choices
        return (False, True) if self.kind == "bool" else (self.minimum, self.maximum)

    def labels(self) -> tuple[str | int | float, ...]:
        """The choices as KerasTuner can hold them: all of one type; lists and mixtures as JSON text."""
        kinds = {type(choice) for choice in self.choices}
        if kinds == {int, float}:
            return tuple(float(choice) for choice in self.choices)
        if len(kinds) == 1 and kinds <= {int, float, str}:
            return self.choices
        return tuple(json.dumps(choice) for choice in self.choices)

    def value(self, label: Any) -> Any:
        """What the flag gets for a value that KerasTuner chose."""
        if self.kind != "choice":
            return label
        chosen = self.choices[self.labels().index(label)]
        return tuple(str(item) for item in chosen) if isinstance(chosen, list) else chosen


@dataclasses.dataclass(frozen=True)
class Space:
    """What a search varies.

    Attributes:
        path: the file.
        parameters: in the order of the file, conditions before what depends on them.
        fixed: flags that have the same value in every trial.
        shapes: with an architecture: its label → the flags it stands for.
        content: the file's content, for the fingerprint.
    """

    path: str
    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]
    shapes: dict[str, dict[str, Any]]
    content: dict[str, Any]

    def flags(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The flags of a trial.

        Args:
            values: what the tuner chose, by parameter; those that do not count are absent.

        Returns:
            Flag → value. A flag that is searched but does not count in this trial is absent.
        """
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name not in values:
                continue
            value = parameter.value(values[parameter.name])
            chosen.update(self.shapes[value] if parameter.name == ARCHITECTURE else {parameter.name: value})
        return chosen

    def columns(self) -> list[str]:
        """The flags that differ between trials."""
        shape = list(next(iter(self.shapes.values()))) if self.shapes else []
        return [parameter.name for parameter in self.parameters if parameter.name != ARCHITECTURE] + shape


def read_space(path: str, groups: Sequence[Group], settings: Mapping[str, Any]) -> Space:
    """Reads a space and checks every name, type and bound against the flags.

    Args:
        path: the TOML file.
        groups: the groups of flags that may be searched.
        settings: the command's settings by group, from which the budget of an architecture is counted.

    Raises:
        UserError: one line that names the file and the entry.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise SettingError("search_space", cannot_read(path, error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no TOML file ({error})") from error
    known_keys(path, "the file", content, ("description", "fixed", "search", ARCHITECTURE))
    for name in ("fixed", "search", ARCHITECTURE):
        if not isinstance(content.get(name, {}), dict):
            raise UserError(f"{path}: {name} is no table; write [{name}] and its entries below it")
    fields = flag_fields(groups)
    fixed = {name: fixed_value(path, fields, name, value) for name, value in content.get("fixed", {}).items()}
    parameters: list[Parameter] = []
    for name, entry in content.get("search", {}).items():
        parameters.append(parameter_of(path, fields, name, entry, parameters))
    shapes: dict[str, dict[str, Any]] = {}
    if ARCHITECTURE in content:
        shapes = architectures(path, content[ARCHITECTURE], with_flags(groups, settings, fixed))
        parameters.append(Parameter(ARCHITECTURE, "choice", choices=tuple(shapes)))
    if not parameters:
        raise UserError(f"{path}: nothing to search; it needs a [search.FLAG] or an [architecture]")
    space = Space(path, tuple(parameters), fixed, shapes, content)
    columns = space.columns()
    for name in columns:
        if name in fixed or columns.count(name) > 1:
            raise UserError(f"{path}: {name} is given twice (fixed, search and architecture must not overlap)")
    return space


def parameter_of(path: str, fields: Mapping[str, Any], name: str, entry: Any, before: Sequence[Parameter]) -> Parameter:
    """One [search.NAME] of the file."""
    where = f"{path}: search.{name}"
    field, hint = known_flag(path, fields, f"search.{name}", name)
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is no table; write [search.{name}] and below it type, min, max or choices")
    known_keys(path, f"search.{name}", entry, KEYS)
    when = conditions(where, entry.get("when", {}), before)
    if "choices" in entry:
        for key in ("min", "max", "step", "scale", "type"):
            if key in entry:
                raise UserError(f"{where}: {key} does not go with choices")
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: choices must be a list of values")
        if any(choices.count(choice) > 1 for choice in choices):
            raise UserError(f"{where}: a choice is there twice")
        parameter = Parameter(name, "choice", choices=tuple(choices), when=when)
    elif entry.get("type") == "bool":
        parameter = Parameter(name, "bool", when=when)
    else:
        parameter = numeric(where, name, entry, when)
    flag_kind, _ = plain_type(hint)
    if (parameter.kind, flag_kind) in (("float", int), ("bool", int), ("bool", float), ("int", bool), ("float", bool)):
        raise UserError(f"{where}: --{name} is of type {flag_kind.__name__}, not {parameter.kind}")
    for value in parameter.examples():
        try:
            validate_field(field, hint, value)
        except SettingError as error:
            raise UserError(f"{where}: {error.problem}") from error
    return parameter


def numeric(where: str, name: str, entry: Mapping[str, Any], when: Any) -> Parameter:
    """A float or int between bounds."""
    kind = entry.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(f"{where}: needs choices, or type = float, int or bool")
    for key in ("min", "max"):
        if key not in entry:
            raise UserError(f"{where}: {key} is missing")
    for key in ("min", "max", "step"):
        value = entry.get(key)
        right = (int, float) if kind == "float" else (int,)
        if value is not None and (not isinstance(value, right) or isinstance(value, bool)):
            raise UserError(f"{where}: {key} = {value!r} is not of type {kind}")
        if value is not None and (problem := out_of_bounds(value)):
            raise UserError(f"{where}: {key}: {problem}")
    low, high, step, scale = entry["min"], entry["max"], entry.get("step"), entry.get("scale", "linear")
    if low >= high:
        raise UserError(f"{where}: min = {low} is not below max = {high}; exchange them")
    if scale not in ("linear", "log"):
        raise UserError(f"{where}: scale = {scale!r} is neither linear nor log")
    if scale == "log" and low <= 0:
        raise UserError(f"{where}: a log scale needs min above 0, not {low}")
    if step is not None and (step <= 0 or (scale == "log" and step <= 1)):
        raise UserError(f"{where}: step = {step} must be above {'1 on a log scale' if scale == 'log' else '0'}")
    as_kind = TYPES[kind]
    return Parameter(name, kind, as_kind(low), as_kind(high), None if step is None else as_kind(step), scale, when=when)


def conditions(where: str, entry: Any, before: Sequence[Parameter]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The `when` of an entry."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: when must be a table, such as when = {{ optimizer = ['muon'] }}")
    known = {parameter.name: parameter for parameter in before}
    found = []
    for name, values in entry.items():
        if name not in known:
            raise UserError(f"{where}: when: {name} is not searched above it; only what is searched can be a condition")
        values = tuple(values) if isinstance(values, list) else (values,)
        parent = known[name]
        possible = parent.choices if parent.kind == "choice" else (True, False) if parent.kind == "bool" else None
        for value in values:
            if possible is None:
                raise UserError(f"{where}: when: {name} is a range; only choices and booleans can be conditions")
            if value not in possible:
                raise UserError(f"{where}: when: {value!r} is not among the choices of {name}")
        labels = dict(zip(parent.choices, parent.labels())) if parent.kind == "choice" else {}
        found.append((name, tuple(labels.get(value, value) for value in values)))
    return tuple(found)


def fixed_value(path: str, fields: Mapping[str, Any], name: str, value: Any) -> Any:
    """One line of [fixed]."""
    field, hint = known_flag(path, fields, f"fixed.{name}", name)
    try:
        return validate_field(field, hint, value)
    except SettingError as error:
        raise UserError(f"{path}: fixed.{name}: {error.problem}") from error


def known_keys(path: str, where: str, entry: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuses a misspelt key."""
    for key in entry:
        if key not in keys:
            hint = did_you_mean(key, keys) or f"; it can have {', '.join(keys)}"
            raise UserError(f"{path}: {where}: {key!r} means nothing here{hint}")


def known_flag(path: str, fields: Mapping[str, Any], where: str, name: str) -> tuple[Any, Any]:
    """The settings field of a flag and its type."""
    if name not in fields:
        hint = did_you_mean(name, fields) or "; python -m tfgpt.train --help lists them"
        raise UserError(f"{path}: {where}: train has no flag --{name}{hint}")
    return fields[name]


def flag_fields(groups: Sequence[Group]) -> dict[str, tuple[Any, Any]]:
    """Flag → its settings field and type."""
    found = {}
    for group in groups:
        cls: type[Settings] = group.settings if isinstance(group, Overrides) else group
        hints = field_types(cls)
        names = set(flag_names(group))
        for field in dataclasses.fields(cls):
            if field.name in names:
                found[field.name] = (field, hints[field.name])
    return found


def with_flags(groups: Sequence[Group], settings: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by group with some flags changed.

    Raises:
        SettingError: a group refuses the combination.
    """
    changed = dict(settings)
    for group in groups:
        mine = {name: flags[name] for name in flag_names(group) if name in flags}
        if not mine:
            continue
        if isinstance(group, Overrides):
            given = {**changed[group.name], **mine}
            changed[group.name] = {name: value for name, value in given.items() if value is not None}
        else:
            name = keyword_name(group)
            changed[name] = dataclasses.replace(changed[name], **mine)
    return changed


def defaults(groups: Sequence[Group]) -> dict[str, Any]:
    """Flag → its default; None for an override, which is then as the preset says."""
    found: dict[str, Any] = {}
    for group in groups:
        cls = group.settings if isinstance(group, Overrides) else group
        names = set(flag_names(group))
        for field in dataclasses.fields(cls):
            if field.name in names:
                found[field.name] = None if isinstance(group, Overrides) else field.default
    return found


def architectures(path: str, entry: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The shapes that fit a budget: for each depth and head width the width that comes nearest to it.

    Args:
        path: the space's file.
        entry: its [architecture].
        settings: by group: the preset and its overrides, the batch and the tokenizer count.

    Returns:
        Label → flags, from the flattest to the deepest.

    Raises:
        UserError: the entry is wrong, or nothing fits.
    """
    from tfgpt.model import presets
    from tfgpt.model.cost import count_parameters, training_flops_per_token

    where = f"{path}: {ARCHITECTURE}"
    known_keys(path, ARCHITECTURE, entry, ARCHITECTURE_KEYS)
    goals = [name for name in ("parameters", "training_flops_per_token") if name in entry]
    if len(goals) != 1:
        raise UserError(f"{where}: needs one of parameters and training_flops_per_token")
    goal, tolerance = entry[goals[0]], entry.get("tolerance", 0.05)
    layers, head_dims, multiple = (
        entry.get("num_layers", []),
        entry.get("head_dim", [64]),
        entry.get("width_multiple", 1),
    )
    if not isinstance(goal, (int, float)) or goal <= 0 or not isinstance(tolerance, float) or not 0 < tolerance < 1:
        raise UserError(f"{where}: {goals[0]} must be a number above 0 and tolerance between 0 and 1")
    for name, values in (("num_layers", layers), ("head_dim", head_dims), ("width_multiple", [multiple])):
        if not isinstance(values, list) or not values or not all(type(value) is int and value > 0 for value in values):
            raise UserError(f"{where}: {name} must be whole numbers above 0")
    vocabulary = 260 if settings["tokenizer"].tokenizer == "bytes" else settings["tokenizer"].vocabulary_size
    length = settings["batch"].sequence_length
    shapes: dict[str, dict[str, Any]] = {}
    nearest = None
    for depth in sorted(set(layers)):
        for head_dim in sorted(set(head_dims)):
            best = None
            for heads in range(1, 1 + 65536 // head_dim):
                width = heads * head_dim
                if width % multiple:
                    continue
                flags = {"num_layers": depth, "hidden_dim": width, "num_query_heads": heads, "head_dim": head_dim}
                overrides = {"max_sequence_length": length, **settings["model"], **flags}
                try:
                    config = presets.resolve(settings["preset"].preset, vocabulary, overrides)
                except SettingError:
                    continue
                cost = (
                    count_parameters(config) if goals[0] == "parameters" else training_flops_per_token(config, length)
                )
                off = abs(cost / goal - 1)
                if best is None or off < best[0]:
                    best = (off, flags)
                if cost > 2 * goal:
                    break
            if best is not None:
                nearest = min(nearest, best[0]) if nearest is not None else best[0]
                if best[0] <= tolerance:
                    flags = best[1]
                    label = f"{depth} layers of {flags['hidden_dim']}, heads of {head_dim}"
                    shapes[label] = flags
    if not shapes:
        raise UserError(
            f"{where}: no shape has {goals[0]} within {tolerance:.0%} of {goal:,}; the nearest is off by "
            f"{nearest or 1:.0%}: raise tolerance or give other num_layers and head_dim"
        )
    return shapes
