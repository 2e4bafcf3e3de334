"""What answers are rewarded for: functions of an answer, named by --reward."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import math
import operator
import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from tfgpt.common.errors import SettingError, UserError
from tfgpt.training.objectives.preference_config import RewardConfig
from tfgpt.training.objectives.prompt_records import PromptRecord


@dataclasses.dataclass(frozen=True)
class RewardInput:
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
    record: PromptRecord


Reward = Callable[[RewardInput], float]


def exact_match(answer: RewardInput) -> float:
    """1 for the record's "answer", white space around it aside, ended by the model itself; else 0."""
    return float(answer.ended and answer.text.strip() == str(wanted(answer.record)).strip())


MARK = "####"
"""Stands before the number that answers a question of GSM8K, behind how it is found."""

NUMBER = re.compile(r"(?:(?<![\d.])-)?(?:\d+(?:\.\d+)?|\.\d+)")


def number(answer: RewardInput) -> float:
    """1 when the last number in the answer is the right one: the record's "answer", or the sum that is asked for."""
    found = numbers_in(answer.text)
    given = answer.record.content.get("answer")
    right = result_asked(answer.record) if given is None else number_wanted(given, answer.record)
    return float(bool(found) and math.isclose(found[-1], right, rel_tol=1e-9))


def numbers_in(text: str) -> list[float]:
    """The numbers in a text; commas in them are left out."""
    return [float(found) for found in NUMBER.findall(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))]


def number_wanted(given: Any, record: PromptRecord) -> float:
    """The number in a record's "answer": a number, a text with one number, or GSM8K's, with `####` before it.

    Raises:
        UserError: it is not clear which one.
    """
    if isinstance(given, str):
        with contextlib.suppress(ValueError):
            given = float(given.replace(",", ""))
    if isinstance(given, str):
        found = numbers_in(given.rpartition(MARK)[2])
        if len(found) != 1:
            what = f"holds {len(found)} numbers" if found else "holds no number"
            where = f" behind its last {MARK}" if MARK in given else "" if not found else f" and no {MARK} before one"
            raise UserError(f'{record.where}: "answer" {what}{where}; --reward=number compares with one')
        return found[0]
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise UserError(f'{record.where}: "answer" is {given!r}, no number, which --reward=number compares with')
    return float(given)


def wanted(record: PromptRecord) -> Any:
    """The record's "answer"."""
    if record.content.get("answer") is None:
        raise UserError(f'{record.where}: has no "answer", which --reward compares with')
    return record.content["answer"]


OPERATIONS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def result_asked(record: PromptRecord) -> float:
    """The value of the arithmetic in a prompt: "12+34=", "What is 3 * (4 - 1)?".

    Raises:
        UserError: there is none, or it is no arithmetic of + - * / and parentheses.
    """
    asked = record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"]
    found = max(re.findall(r"[-+*/().\d\s]+", asked), key=len, default="").strip()
    try:
        return float(value_of(ast.parse(found, mode="eval").body))
    except (SyntaxError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
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


@dataclasses.dataclass(frozen=True)
class WeightedReward:
    """A function that --reward names.

    Attributes:
        factor: what its values are multiplied with in the sum.
        name: what the flag calls it.
        function: the function.
    """

    factor: float
    name: str
    function: Reward

    def of(self, answer: RewardInput) -> float:
        """The function's value.

        Raises:
            UserError: it fails, or gives no finite number.
        """
        where = f"{answer.record.where}: --reward={self.name}"
        text = repr(answer.text if len(answer.text) <= 60 else answer.text[:60] + "…")
        try:
            value: Any = self.function(answer)
        except UserError:
            raise
        except Exception as error:  # somebody's own function
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(f"{where} fails on {text}: {error!r} ({frame.filename}:{frame.lineno})") from error
        try:
            made = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, OverflowError):
            made = math.nan
        if not math.isfinite(made):
            raise UserError(f"{where} gives {value!r} for {text}; it should return a finite number")
        return made


def rewards_of(config: RewardConfig) -> list[WeightedReward]:
    """The functions that --reward names, each with its factor.

    Raises:
        SettingError: a name is not known, or its module cannot be imported.
    """
    return [WeightedReward(factor, name, named(name, config)) for factor, name in map(factor_and_name, config.reward)]


def factor_and_name(text: str) -> tuple[float, str]:
    """ "0.2*format" → (0.2, "format"); without a factor 1."""
    factor, star, name = text.rpartition("*")
    try:
        made = float(factor) if star else 1.0
    except ValueError:
        made = math.nan
    if not math.isfinite(made):
        raise SettingError("reward", f"{text!r}: {factor!r} is no number; write it as 0.2*format")
    return made, name.strip()


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


def total_reward(rewards: Sequence[WeightedReward], answer: RewardInput) -> tuple[float, float]:
    """The sum of the rewards, and whether the first of them is given in full (1 or 0): the answer passes.

    Raises:
        UserError: a function fails or gives no finite number.
    """
    values = [reward.of(answer) for reward in rewards]
    return sum(reward.factor * value for reward, value in zip(rewards, values)), float(values[0] >= 1.0)
