"""What answers are rewarded for: functions of an answer, named by --reward."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from tfgpt.common.errors import RunError, SettingError, UserError
from tfgpt.training.preference_config import RewardConfig
from tfgpt.training.records import Record


@dataclasses.dataclass(frozen=True)
class Answer:
    """A sampled answer.

    Attributes:
        text: what the model wrote.
        tokens: how many tokens that took.
        ended: whether it ended by itself.
        record: what it answers; `record.content` is the whole line.
    """

    text: str
    tokens: int
    ended: bool
    record: Record


Reward = Callable[[Answer], float]


def exact_match(answer: Answer) -> float:
    """1 for the record's "answer", white space around it aside, ended by the model itself; else 0."""
    return float(answer.ended and answer.text.strip() == str(wanted(answer.record)).strip())


def number(answer: Answer) -> float:
    """1 when the last number in the answer is the right one: the record's "answer", or the sum that is asked for."""
    found = re.findall(r"-?\d+(?:\.\d+)?", answer.text.replace(",", ""))
    content = answer.record.content
    right = float(str(wanted(answer.record)).replace(",", "")) if "answer" in content else result_asked(answer.record)
    return float(bool(found) and math.isclose(float(found[-1]), right, rel_tol=1e-9))


def wanted(record: Record) -> Any:
    """The record's "answer"."""
    if "answer" not in record.content:
        raise UserError(f'{record.where}: has no "answer", which --reward compares with')
    return record.content["answer"]


OPERATIONS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def result_asked(record: Record) -> float:
    """The value of the arithmetic in a prompt: "12+34=", "What is 3 * (4 - 1)?".

    Raises:
        UserError: there is none, or it is no arithmetic of + - * / and parentheses.
    """
    asked = record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"]
    found = max(re.findall(r"[-+*/().\d\s]+", asked), key=len, default="").strip()
    try:
        return float(value_of(ast.parse(found, mode="eval").body))
    except (SyntaxError, KeyError, AttributeError, ZeroDivisionError, TypeError) as error:
        raise UserError(f'{record.where}: has no "answer", and its prompt asks for no arithmetic') from error


def value_of(node: Any) -> float:
    """The value of a parsed expression."""
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](value_of(node.left), value_of(node.right))
    if isinstance(node, ast.UnaryOp):
        return OPERATIONS[type(node.op)](value_of(node.operand))
    return node.value


def format_of(config: RewardConfig) -> Reward:
    """1 when the whole answer matches --reward_pattern."""
    try:
        pattern = re.compile(config.reward_pattern)
    except re.error as error:
        raise SettingError("reward_pattern", f"{config.reward_pattern!r} is no regular expression ({error})") from error
    return lambda answer: float(pattern.fullmatch(answer.text) is not None)


def length_of(config: RewardConfig) -> Reward:
    """1 up to --reward_length tokens, 0 from twice as many on, in between on a straight line."""
    return lambda answer: min(1.0, max(0.0, 2.0 - answer.tokens / config.reward_length))


NAMED: dict[str, Callable[[RewardConfig], Reward]] = {
    "exact_match": lambda config: exact_match,
    "number": lambda config: number,
    "format": format_of,
    "length": length_of,
}


def rewards_of(config: RewardConfig) -> list[tuple[float, Reward]]:
    """The functions that --reward names, each with its factor.

    Raises:
        SettingError: a name is not known, or its module cannot be imported.
    """
    return [(factor, named(name, config)) for factor, name in map(factor_and_name, config.reward)]


def factor_and_name(text: str) -> tuple[float, str]:
    """ "0.2*format" → (0.2, "format"); without a factor 1."""
    factor, star, name = text.rpartition("*")
    try:
        return (float(factor), name.strip()) if star else (1.0, text.strip())
    except ValueError as error:
        raise SettingError("reward", f"{text!r}: {factor!r} is no number; write it as 0.2*format") from error


def named(name: str, config: RewardConfig) -> Reward:
    """One function."""
    if name in NAMED:
        return NAMED[name](config)
    module, colon, function = name.partition(":")
    if not colon:
        raise SettingError("reward", f"{name!r} is not known; there are {', '.join(NAMED)} and module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SettingError("reward", f"{name}: cannot be imported ({error})") from error
    if not callable(found):
        raise SettingError("reward", f"{name}: is no function")
    return found


def total_reward(rewards: Sequence[tuple[float, Reward]], answer: Answer) -> tuple[float, float]:
    """The sum of the rewards, and whether the first of them is given in full (1 or 0): the answer passes.

    Raises:
        RunError: a function gives no finite number.
    """
    values = []
    for _, function in rewards:
        value = float(function(answer))
        if not math.isfinite(value):
            raise RunError(
                f"{answer.record.where}: --reward gives {value} for {answer.text!r}, which is no finite number"
            )
        values.append(value)
    return sum(factor * value for (factor, _), value in zip(rewards, values)), float(values[0] >= 1.0)
