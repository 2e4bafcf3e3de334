"""Which number a record asks for, and what happens to rewards that fail."""

import pytest

from tfgpt.common.errors import UserError
from tfgpt.training.objective_config import RewardConfig
from tfgpt.training.objectives.prompt_records import PromptRecord
from tfgpt.training.objectives.rewards import RewardInput, load_rewards, total_reward

GSM8K = "She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"


def reward(name: str, text: str, **content) -> float:
    record = PromptRecord("a.jsonl:7", {"prompt": "12+34=", **content}, "12+34=")
    return total_reward(load_rewards(RewardConfig(reward=(name,))), RewardInput(text, 3, True, record))[0]


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("... = 18.", GSM8K, 1),
        ("#### 9", GSM8K, 0),
        ("I think 1,234", "It takes 1200 + 34.\n#### 1,234", 1),
        ("−5 degrees", "#### -5", 1),
        ("10-3", "3", 1),
        ("it is .5", 0.5, 1),
        ("$72", "$72", 1),
        ("1500", "1.5e3", 1),
        ("46", None, 1),  # the sum that is asked for
    ],
)
def test_the_number_reward_reads_answers_as_gsm8k_writes_them(text, given, expected):
    assert reward("number", text, answer=given) == expected


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("3 or 4", 'a.jsonl:7: "answer" holds 2 numbers and no #### before one'),
        ("#### none", 'a.jsonl:7: "answer" holds no number after its last ####'),
        ("many", 'a.jsonl:7: "answer" holds no number; --reward=number compares with one'),
        ([1], r'a.jsonl:7: "answer" is \[1\], not a number'),
        (True, 'a.jsonl:7: "answer" is True, not a number'),
        (float("inf"), 'a.jsonl:7: "answer" is inf, not a number'),
    ],
)
def test_an_answer_without_one_number_is_named(given, problem):
    with pytest.raises(UserError, match=problem):
        reward("number", "46", answer=given)
    with pytest.raises(UserError, match='a.jsonl:7: has no "answer"'):
        reward("exact_match", "46", answer=None)


def none(answer: RewardInput) -> None:
    """A reward that gives nothing."""


def words(answer: RewardInput) -> str:
    """A reward that gives a text."""
    return "1.0"


def not_a_number(answer: RewardInput) -> float:
    """A reward that gives no number."""
    return float("nan")


def broken(answer: RewardInput) -> float:
    """A reward with a fault."""
    return 1 / len(answer.text[:0])


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("none", "gives None for 'so'; it should return a finite number"),
        ("words", "gives '1.0' for 'so'"),
        ("not_a_number", "gives nan for 'so'"),
        ("broken", r"fails on 'so': ZeroDivisionError\('division by zero'\) \(.*test_rewards.py:\d+\)"),
    ],
)
def test_a_reward_that_gives_no_number_is_named_with_file_line_and_answer(function, problem):
    with pytest.raises(UserError, match=f"^a.jsonl:7: --reward={__name__}:{function} {problem}"):
        reward(f"{__name__}:{function}", "so")
