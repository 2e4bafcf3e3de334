"""The search space: a TOML file of flags of `train` and the values to try. No TensorFlow.

[fixed]                      # for every trial, over the flags of the command
schedule = "wsd"

[search.learning_rate]       # the name of a flag
type = "float"               # float, int, bool; not needed with choices
min = 1e-3
max = 1e-1
scale = "log"                # linear (default) or log
# step = 0.1                 # linear: the distance of neighbors; log: their ratio

[search.momentum]            # searched where the condition holds; elsewhere the flag has its default
choices = [0.9, 0.95]
when = { optimizer = ["muon"] }

[architecture]               # all combinations with about this number of parameters
parameters = 1_500_000       # or: training_flops_per_token = 9e6
tolerance = 0.05
num_layers = [2, 3, 4, 6]
head_dim = [32, 64]
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from tfgpt.common.did_you_mean import cannot_read, did_you_mean
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.flags import Group, Overrides, flag_names, keyword_name
from tfgpt.common.settings import Settings, out_of_bounds, plain_type, validate_field
from tfgpt.model import cost, presets

KEYS = ("type", "min", "max", "step", "scale", "choices", "when")
TYPES: dict[str, Any] = {"float": float, "int": int}
ARCHITECTURE = "architecture"
ARCHITECTURE_KEYS = (
    "parameters", "training_flops_per_token", "tolerance", "num_layers", "head_dim", "width_multiple",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A searched flag.

    Attributes:
        name: the flag without its dashes, or "architecture".
        kind: "float", "int", "bool" or "choice".
        minimum, maximum: of a number, both inclusive.
        step: between neighbors (linear) or as a ratio (log); None: any value.
        scale: "linear" or "log".
        choices: the values of a choice.
        when: (name of another parameter, its values) pairs that must all hold for the parameter to apply.
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
        """Returns values that must be valid if all are."""
        if self.kind == "choice":
            return self.choices
        return (False, True) if self.kind == "bool" else (self.minimum, self.maximum)

    def tuner_values(self) -> tuple[Any, ...]:
        """Returns `examples` as KerasTuner holds them: choices of one type, lists and mixed types as JSON."""
        if self.kind != "choice":
            return self.examples()
        kinds = {type(choice) for choice in self.choices}
        if kinds == {int, float}:
            return tuple(float(choice) for choice in self.choices)
        if len(kinds) == 1 and kinds <= {int, float, str}:
            return self.choices
        return tuple(json.dumps(choice) for choice in self.choices)


@dataclasses.dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        parameters: in the order of the file, each after those of its condition.
        fixed: flags with the same value in every trial.
        shapes: of an architecture: its label → its flags.
        content: the parsed file.
    """

    path: str
    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]
    shapes: dict[str, dict[str, Any]]
    content: dict[str, Any]

    def flags(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the flags of a trial for the tuner's choices by parameter."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name in values:
                value = values[parameter.name]
                if parameter.kind == "choice":
                    value = parameter.choices[parameter.tuner_values().index(value)]
                    value = tuple(map(str, value)) if isinstance(value, list) else value
                chosen.update(self.shapes[value] if parameter.name == ARCHITECTURE else {parameter.name: value})
        return chosen

    def columns(self) -> list[str]:
        """Returns the flags that differ between trials."""
        shape = list(next(iter(self.shapes.values()))) if self.shapes else []
        return [parameter.name for parameter in self.parameters if parameter.name != ARCHITECTURE] + shape


def read_space(path: str, groups: Sequence[Group], settings: Mapping[str, Any]) -> Space:
    """Reads a TOML file and checks each name, type and bound against the flags."""
    try:
        with open(path, "rb") as file:
            content = tomllib.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise SettingError("search_space", cannot_read(path, error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from error
    check_keys(path, "the file", content, ("description", "fixed", "search", ARCHITECTURE))
    for name in ("fixed", "search", ARCHITECTURE):
        if not isinstance(content.get(name, {}), dict):
            raise UserError(f"{path}: {name} is not a table; write [{name}] and its entries below it")
    fields = flag_fields(groups)
    fixed = {
        name: check_value(f"{path}: fixed.{name}", *known_flag(path, fields, f"fixed.{name}", name), value)
        for name, value in content.get("fixed", {}).items()
    }
    parameters: list[Parameter] = []
    for name, entry in content.get("search", {}).items():
        parameters.append(parse_parameter(path, fields, name, entry, parameters))
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


def with_flags(groups: Sequence[Group], settings: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings by group with some flags changed."""
    changed = dict(settings)
    for group in groups:
        given = {name: flags[name] for name in flag_names(group) if name in flags}
        if given and isinstance(group, Overrides):
            merged = {**changed[group.name], **given}
            changed[group.name] = {name: value for name, value in merged.items() if value is not None}
        elif given and not isinstance(group, Overrides):
            name = keyword_name(group)
            changed[name] = dataclasses.replace(changed[name], **given)
    return changed


def flag_defaults(groups: Sequence[Group]) -> dict[str, Any]:
    """Returns flag → default; None for an override, whose default is the preset's."""
    overrides = {name for group in groups if isinstance(group, Overrides) for name in flag_names(group)}
    fields = flag_fields(groups)
    return {name: None if name in overrides else field.default for name, (field, _) in fields.items()}


def flag_fields(groups: Sequence[Group]) -> dict[str, tuple[Any, Any]]:
    """Returns flag → its settings field and type."""
    found = {}
    for group in groups:
        cls: type[Settings] = group.settings if isinstance(group, Overrides) else group
        hints, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
        found.update({name: (fields[name], hints[name]) for name in flag_names(group) if name in fields})
    return found


def parse_parameter(
    path: str, fields: Mapping[str, Any], name: str, entry: Any, before: Sequence[Parameter]
) -> Parameter:
    where = f"{path}: search.{name}"
    field, hint = known_flag(path, fields, f"search.{name}", name)
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not a table; write [search.{name}] and below it type, min, max or choices")
    check_keys(path, f"search.{name}", entry, KEYS)
    when = parse_conditions(where, entry.get("when", {}), before)
    if "choices" in entry:
        for key in ("min", "max", "step", "scale", "type"):
            if key in entry:
                raise UserError(f"{where}: {key} cannot be combined with choices")
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: choices must be a list of values")
        if any(choices.count(choice) > 1 for choice in choices):
            raise UserError(f"{where}: a choice appears twice")
        parameter = Parameter(name, "choice", choices=tuple(choices), when=when)
    elif entry.get("type") == "bool":
        parameter = Parameter(name, "bool", when=when)
    else:
        parameter = parse_range(where, name, entry, when)
    flag_kind, _ = plain_type(hint)
    if (parameter.kind, flag_kind) in (("float", int), ("bool", int), ("bool", float), ("int", bool), ("float", bool)):
        raise UserError(f"{where}: --{name} is of type {flag_kind.__name__}, not {parameter.kind}")
    for value in parameter.examples():
        check_value(where, field, hint, value)
    return parameter


def parse_range(where: str, name: str, entry: Mapping[str, Any], when: Any) -> Parameter:
    kind = TYPES.get(str(entry.get("type")))
    if kind is None:
        raise UserError(f"{where}: needs choices, or type = float, int or bool")
    for key in ("min", "max", "step"):
        value = entry.get(key)
        if value is None:
            if key != "step":
                raise UserError(f"{where}: {key} is missing")
            continue
        if type(value) not in (int, kind):
            raise UserError(f"{where}: {key} = {value!r} is not of type {kind.__name__}")
        if problem := out_of_bounds(value):
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
    return Parameter(name, kind.__name__, kind(low), kind(high), None if step is None else kind(step), scale, when=when)


def parse_conditions(where: str, entry: Any, before: Sequence[Parameter]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: when must be a table, such as when = {{ optimizer = ['muon'] }}")
    known = {parameter.name: parameter for parameter in before}
    found = []
    for name, wanted in entry.items():
        if name not in known:
            raise UserError(f"{where}: when: {name} is not searched above it; a condition must be a searched flag")
        parent = known[name]
        if parent.kind not in ("choice", "bool"):
            raise UserError(f"{where}: when: {name} is a range; only choices and booleans can be conditions")
        possible = dict(zip(map(repr, parent.examples()), parent.tuner_values()))
        values = wanted if isinstance(wanted, list) else [wanted]
        for value in values:
            if repr(value) not in possible:
                raise UserError(f"{where}: when: {value!r} is not among the choices of {name}")
        found.append((name, tuple(possible[repr(value)] for value in values)))
    return tuple(found)


def check_value(where: str, field: Any, hint: Any, value: Any) -> Any:
    try:
        return validate_field(field, hint, value)
    except SettingError as error:
        raise UserError(f"{where}: {error.problem}") from error


def check_keys(path: str, where: str, entry: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in entry:
        if key not in keys:
            hint = did_you_mean(key, keys) or f"; it can have {', '.join(keys)}"
            raise UserError(f"{path}: {where}: unknown key {key!r}{hint}")


def known_flag(path: str, fields: Mapping[str, Any], where: str, name: str) -> tuple[Any, Any]:
    if name not in fields:
        hint = did_you_mean(name, fields) or "; python -m tfgpt.train --help lists them"
        raise UserError(f"{path}: {where}: train has no flag --{name}{hint}")
    return fields[name]


def architectures(path: str, entry: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns label → flags of the shapes that fit a budget: for each depth and head size the width nearest to it.

    The cost of a shape depends on the preset, its overrides, the batch and the tokenizer in `settings`.
    """
    where = f"{path}: {ARCHITECTURE}"
    check_keys(path, ARCHITECTURE, entry, ARCHITECTURE_KEYS)
    goals = [name for name in ("parameters", "training_flops_per_token") if name in entry]
    if len(goals) != 1:
        raise UserError(f"{where}: needs one of parameters and training_flops_per_token")
    goal, tolerance = entry[goals[0]], entry.get("tolerance", 0.05)
    if not isinstance(goal, (int, float)) or goal <= 0 or not isinstance(tolerance, float) or not 0 < tolerance < 1:
        raise UserError(f"{where}: {goals[0]} must be a number above 0 and tolerance between 0 and 1")
    layers, head_dims = entry.get("num_layers", []), entry.get("head_dim", [64])
    multiple = entry.get("width_multiple", 1)
    for name, values in (("num_layers", layers), ("head_dim", head_dims), ("width_multiple", [multiple])):
        if not isinstance(values, list) or not values or not all(type(value) is int and value > 0 for value in values):
            raise UserError(f"{where}: {name} must be whole numbers above 0")
    shapes: dict[str, dict[str, Any]] = {}
    smallest_error = 1.0
    for depth, head_dim in itertools.product(sorted(set(layers)), sorted(set(head_dims))):
        error, flags = nearest_shape(settings, goals[0], goal, depth, head_dim, multiple)
        smallest_error = min(smallest_error, error)
        if error <= tolerance:
            shapes[f"{depth} layers of {flags['hidden_dim']}, heads of {head_dim}"] = flags
    if not shapes:
        raise UserError(
            f"{where}: no shape has {goals[0]} within {tolerance:.0%} of {goal:,}; the nearest is off by "
            f"{smallest_error:.0%}: raise tolerance or give other num_layers and head_dim"
        )
    return shapes


def nearest_shape(
    settings: Mapping[str, Any], measure: str, goal: float, depth: int, head_dim: int, multiple: int
) -> tuple[float, dict[str, Any]]:
    """Returns the smallest relative error to the goal over all widths, and its flags."""
    vocabulary = 260 if settings["tokenizer"].tokenizer == "bytes" else settings["tokenizer"].vocabulary_size
    length = settings["batch"].sequence_length
    best: tuple[float, dict[str, Any]] = math.inf, {}
    for heads in range(1, 1 + 65536 // head_dim):
        if heads * head_dim % multiple:
            continue
        flags = {"num_layers": depth, "hidden_dim": heads * head_dim, "num_query_heads": heads, "head_dim": head_dim}
        try:
            overrides = {"max_sequence_length": length, **settings["model"], **flags}
            config = presets.resolve(settings["preset"].preset, vocabulary, overrides)
        except SettingError:
            continue
        counted = measure == "parameters"
        size = cost.count_parameters(config) if counted else cost.training_flops_per_token(config, length)
        if (error := abs(size / goal - 1)) < best[0]:
            best = error, flags
        if size > 2 * goal:
            break
    return best
