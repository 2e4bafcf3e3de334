"""Which number a record asks for, and what happens to rewards that fail."""

import pytest

from tfgpt.common.errors import SettingError, UserError
from tfgpt.training.objective_config import RewardConfig
from tfgpt.training.objectives.prompt_records import PromptRecord
from tfgpt.training.objectives.rewards import RewardInput, load_rewards, total_reward

GSM8K = "She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"


def rewards(names, text, prompt="12+34=", tokens=3, ended=True, settings=(), **content) -> tuple[float, float]:
    record = PromptRecord("a.jsonl:7", {"prompt": prompt, **content}, prompt)
    return total_reward(load_rewards(RewardConfig(names, **dict(settings))), RewardInput(text, tokens, ended, record))


def reward(name: str, text: str, **options) -> float:
    return rewards((name,), text, **options)[0]


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
        ("it is 46.", "46", 1),
        ("46 or 47", None, 0),
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


def length_parity(answer: RewardInput) -> float:
    return float(len(answer.text) % 2)


def test_rewards():
    assert rewards(("exact_match",), " 46 ", answer="46") == (1, 1)
    assert rewards(("exact_match",), "46", answer="46", ended=False) == (0, 0)
    assert reward("number", "1,006", prompt="What is 2 * (500 + 3)?") == 1
    assert [reward("format", text) for text in ("46", "46!")] == [1, 0]
    assert [reward("format", text, settings={"reward_pattern": "[a-z]+"}) for text in ("yes", "46")] == [1, 0]
    assert [reward("length", "", tokens=n, settings={"reward_length": 10}) for n in (10, 15, 20)] == [1, 0.5, 0]
    both = rewards(("number", "0.5*format", f"-2*{__name__}:length_parity"), "46!", answer="46")
    assert both == (1 + 0 - 2, 1)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("speed", "'speed' is not known; there are exact_match, number, format, length and module:function"),
        ("no.such:thing", "no.such:thing: cannot be imported"),
        ("much*format", "'much' is not a number"),
        ("inf*format", "'inf' is not a number"),
    ],
)
def test_rewards_that_cannot_be_are_named(name, problem):
    with pytest.raises(SettingError, match=problem):
        load_rewards(RewardConfig((name,)))


def none(answer: RewardInput) -> None:
    """A reward that gives nothing."""


def words(answer: RewardInput) -> str:
    return "1.0"


def not_a_number(answer: RewardInput) -> float:
    return float("nan")


def broken(answer: RewardInput) -> float:
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
