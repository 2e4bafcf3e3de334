"""Rewards of answers: functions that --reward names."""

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
from tfgpt.training.objective_config import RewardConfig
from tfgpt.training.objectives.prompt_records import PromptRecord

# GSM8K writes it before the number that answers a question, after the explanation.
MARK = "####"
NUMBER = re.compile(r"(?:(?<![\d.])-)?(?:\d+(?:\.\d+)?|\.\d+)")
OPERATIONS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


@dataclasses.dataclass(frozen=True)
class RewardInput:
    """A sampled answer.

    Attributes:
        tokens: its number of tokens.
        ended: whether the model ended it.
        record: the record of the prompt; `record.content` is the whole line.

    Example:

    >>> record = PromptRecord("sums.jsonl:1", {"prompt": "2+2=", "answer": "4"}, "2+2=")
    >>> exact_match(RewardInput(" 4", tokens=2, ended=True, record=record))
    1.0
    """

    text: str
    tokens: int
    ended: bool
    record: PromptRecord


Reward = Callable[[RewardInput], float]


@dataclasses.dataclass(frozen=True)
class WeightedReward:
    """A function of --reward and the factor of its values in the sum."""

    factor: float
    name: str
    function: Reward

    def __call__(self, answer: RewardInput) -> float:
        """Returns the function's value; raises `UserError` if it fails or returns no finite number."""
        where = f"{answer.record.where}: --reward={self.name}"
        text = repr(answer.text if len(answer.text) <= 60 else answer.text[:60] + "…")
        try:
            value: Any = self.function(answer)
        except UserError:
            raise
        except Exception as error:  # a function of the user's
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(f"{where} fails on {text}: {error!r} ({frame.filename}:{frame.lineno})") from error
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if not isinstance(value, (str, bytes)) and math.isfinite(float(value)):
                return float(value)
        raise UserError(f"{where} gives {value!r} for {text}; it should return a finite number")


def load_rewards(config: RewardConfig) -> list[WeightedReward]:
    """Returns the functions of --reward with their factors; "0.2*format" has the factor 0.2, "format" 1."""
    rewards = []
    for text in config.reward:
        factor, star, name = text.rpartition("*")
        value = math.nan
        with contextlib.suppress(ValueError):
            value = float(factor) if star else 1.0
        if not math.isfinite(value):
            raise SettingError("reward", f"{text!r}: {factor!r} is not a number; write it as 0.2*format")
        rewards.append(WeightedReward(value, name.strip(), load_reward(name.strip(), config)))
    return rewards


def total_reward(rewards: Sequence[WeightedReward], answer: RewardInput) -> tuple[float, float]:
    """Returns the sum of the rewards, and 1 if the answer passes: the first reward is given in full; else 0."""
    values = [reward(answer) for reward in rewards]
    return sum(reward.factor * value for reward, value in zip(rewards, values)), float(values[0] >= 1.0)


def exact_match(answer: RewardInput) -> float:
    """Returns 1 for the record's "answer", apart from white space around it, if the model ended it; else 0."""
    expected = answer.record.content.get("answer")
    if expected is None:
        raise UserError(f'{answer.record.where}: has no "answer", which --reward compares with')
    return float(answer.ended and answer.text.strip() == str(expected).strip())


def number(answer: RewardInput) -> float:
    """Returns 1 if the last number in the answer is the record's "answer", or the value of the prompt's arithmetic."""
    found = parse_numbers(answer.text)
    given = answer.record.content.get("answer")
    expected = evaluate_prompt(answer.record) if given is None else expected_number(given, answer.record)
    return float(bool(found) and math.isclose(found[-1], expected, rel_tol=1e-9))


def parse_numbers(text: str) -> list[float]:
    return [float(found) for found in NUMBER.findall(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))]


def expected_number(given: Any, record: PromptRecord) -> float:
    """Returns the number of an "answer": a number, a text with one number, or GSM8K's, with `####` before it."""
    if isinstance(given, str):
        with contextlib.suppress(ValueError):
            given = float(given.replace(",", ""))
    if isinstance(given, str):
        found = parse_numbers(given.rpartition(MARK)[2])
        if len(found) != 1:
            what = f"holds {len(found)} numbers" if found else "holds no number"
            where = f" after its last {MARK}" if MARK in given else "" if not found else f" and no {MARK} before one"
            raise UserError(f'{record.where}: "answer" {what}{where}; --reward=number compares with one')
        return found[0]
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise UserError(f'{record.where}: "answer" is {given!r}, not a number, which --reward=number compares with')
    return float(given)


def evaluate_prompt(record: PromptRecord) -> float:
    """Returns the value of the arithmetic of + - * / and parentheses in a prompt: "12+34=", "What is 3 * (4 - 1)?"."""

    def value(node: Any) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        return OPERATIONS[type(node.op)](value(node.operand)) if isinstance(node, ast.UnaryOp) else node.value

    prompt = record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"]
    found = max(re.findall(r"[-+*/().\d\s]+", prompt), key=len, default="").strip()
    try:
        return float(value(ast.parse(found, mode="eval").body))
    except (SyntaxError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f'{record.where}: has no "answer", and its prompt asks for no arithmetic') from error


def load_reward(name: str, config: RewardConfig) -> Reward:
    if name in ("exact_match", "number"):
        return exact_match if name == "exact_match" else number
    if name == "format":
        try:
            pattern = re.compile(config.reward_pattern)
        except re.error as error:
            problem = f"{config.reward_pattern!r} is not a regular expression ({error})"
            raise SettingError("reward_pattern", problem) from error
        return lambda answer: float(pattern.fullmatch(answer.text) is not None)
    if name == "length":
        # 1 up to --reward_length tokens; falls linearly to 0 at twice as many.
        return lambda answer: min(1.0, max(0.0, 2.0 - answer.tokens / config.reward_length))
    module, colon, function = name.partition(":")
    if not colon:
        known = "exact_match, number, format, length and module:function"
        raise SettingError("reward", f"{name!r} is not known; there are {known}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SettingError("reward", f"{name}: cannot be imported ({error})") from error
    if not callable(found):
        raise SettingError("reward", f"{name}: is not a function")
    return found
