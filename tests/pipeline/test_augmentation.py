"""Augmentation depends on seed, epoch and part only, and never changes the assistant's words."""

import pytest

from tfgpt.common.errors import UserError
from tfgpt.pipeline.augmentation import Augmentation, read_paraphrases
from tfgpt.pipeline.config import AugmentationConfig


def test_augmentation_is_a_pure_function_of_seed_epoch_and_conversation():
    config = AugmentationConfig(augment_casing=0.5, augment_word_dropout=0.3, augment_spacing=0.3)
    messages = [{"role": "user", "content": f"one two three {n} 你好吗"} for n in range(5)] + [
        {"role": "assistant", "content": "Leave me alone."}
    ]
    one, same, other = (Augmentation(config, {}, seed) for seed in (1, 1, 2))
    assert one.augment(messages, 0, 7) == same.augment(messages, 0, 7)
    assert one.augment(messages, 0, 7) != other.augment(messages, 0, 7)
    assert one.augment(messages, 0, 7) != one.augment(messages, 1, 7)
    assert one.augment(messages, 0, 7) != one.augment(messages, 0, 8)
    assert one.augment(messages, 0, 7)[-1] == messages[-1]
    assert all(message["content"].strip() for message in one.augment(messages, 0, 7))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("pairs.tsv", "a\tb\nc\n", r"pairs.tsv:2: 1 columns, not two"),
        ("pairs.jsonl", '{"text": "a", "paraphrase": 3}\n', r"pairs.jsonl:1: needs 'text' and 'paraphrase'"),
        ("pairs.tsv", "a\ta\n", r"--paraphrases: .*pairs.tsv: holds no pair"),
    ],
)
def test_a_file_without_pairs_is_refused(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        read_paraphrases(str(tmp_path / name))


def test_pairs_hold_both_ways(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"text": "Hi ", "paraphrases": ["Hello", "Hey"]}\n')
    expected = {"Hi": ["Hello", "Hey"], "Hello": ["Hi"], "Hey": ["Hi"]}
    assert read_paraphrases(str(tmp_path / "pairs.jsonl")) == expected
