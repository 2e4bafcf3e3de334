"""Claims about learning from rewards: the formula, what is rewarded, rounds that can be resumed, and that it works."""

import collections
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.model.options import MODERN, VOCABULARY, random_decoder
from tests.training.small_step import save_byte_model
from tests.training.test_run import assert_same_end, parse, rows, train_recipe
from tfgpt.common.errors import SettingError
from tfgpt.training.objective_config import RewardConfig
from tfgpt.training.objectives.base import get_objective
from tfgpt.training.objectives.grpo import GRPO, GRPOLoss, RolloutBuffer, advantages
from tfgpt.training.objectives.rewards import RewardInput
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer_and_data

ROWS, LENGTH = 4, 10


def test_advantages_are_those_of_torch():
    torch = pytest.importorskip("torch")
    rewards = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0.2, 0.7, -1, 0]], np.float32)
    values = torch.tensor(rewards)
    expected = (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-4)
    np.testing.assert_allclose(advantages(rewards), expected.numpy(), atol=1e-5)


def test_loss_and_gradient_are_those_of_the_formula():
    """Per answer the mean over its tokens of -min(r A, clip(r) A) + b k3, differentiated by TensorFlow itself."""
    random = np.random.default_rng(0)
    decoder = random_decoder(MODERN | {"num_layers": 1})
    ids = random.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    place = np.arange(LENGTH)
    logits = decoder({"token_ids": ids[:, :-1]})
    now = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits).numpy()
    batch = {
        "token_ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": ((place >= 3) & (place < np.array([[5], [10], [4], [8]]))).astype(np.float32),
        "advantages": np.array([1.5, -0.5, 0.0, -1.0], np.float32),
        "rewards": np.array([1, 0, 0.5, 0], np.float32),
        "passed": np.array([1, 0, 0, 0], np.float32),
        # Some ratios are within the clip range, some outside on both sides.
        "sampled_nll": (now + random.normal(0, 0.3, now.shape)).astype(np.float32),
        "reference_nll": (now + random.normal(0, 0.3, now.shape)).astype(np.float32),
    }
    weights = [variable.value for variable in decoder.trainable_variables]
    with tf.GradientTape() as tape:
        sums = GRPOLoss(RewardConfig(kl_penalty=0.3, clip_epsilon=0.15))(decoder, batch, training=True)
    found = tape.gradient(sums["loss_sum"], weights)
    with tf.GradientTape() as tape:
        logs = -tf.nn.sparse_softmax_cross_entropy_with_logits(
            batch["targets"], decoder({"token_ids": batch["token_ids"]})
        )
        expected, divergence, clipped = 0.0, 0.0, 0.0
        for row in range(ROWS):
            tokens = np.flatnonzero(batch["weights"][row])
            for token in tokens:
                ratio = tf.exp(logs[row, token] + batch["sampled_nll"][row, token])
                gain = tf.minimum(
                    ratio * batch["advantages"][row], tf.clip_by_value(ratio, 0.85, 1.15) * batch["advantages"][row]
                )
                change = -batch["reference_nll"][row, token] - logs[row, token]
                expected += (-gain + 0.3 * (tf.exp(change) - change - 1.0)) / len(tokens)
                divergence += (tf.exp(change) - change - 1.0) / len(tokens)
                clipped += float(gain < ratio * batch["advantages"][row]) / len(tokens)
    np.testing.assert_allclose(sums["loss_sum"], expected, rtol=1e-4)
    assert 0 < clipped < ROWS and float(divergence) > 0.01
    reported = {"clipped": clipped, "kl": divergence, "reward": 1.5, "pass_rate": 1, "weight_sum": ROWS}
    for name, value in {**reported, "completion_length": batch["weights"].sum()}.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-4, err_msg=name)
    for mine, other in zip(found, tape.gradient(expected, weights), strict=True):
        other = tf.convert_to_tensor(other).numpy()
        np.testing.assert_allclose(tf.convert_to_tensor(mine), other, atol=2e-5 * max(1.0, np.abs(other).max()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes that writes anything."""
    return save_byte_model(tmp_path_factory.mktemp("base"), 0.3)


def letters(given: RewardInput) -> float:
    """The share of the answer that is small letters: a reward that a random model can begin to earn."""
    return sum(character.islower() and character.isascii() for character in given.text) / max(1, len(given.text))


def reward_recipe(base: Path, directory: Path, *more: str) -> TrainConfig:
    text = directory / "prompts.jsonl"
    text.write_text("".join(json.dumps({"prompt": f"{number}:"}) + "\n" for number in range(20)), encoding="utf-8")
    flags = (
        f"--objective=grpo --init_from={base} --train_text={text} --run_dir={directory / 'run'} "
        f"--reward={__name__}:letters --validation_fraction=0.2 --max_completion_length=6 --group_size=8 "
        "--kl_penalty=0.01 "
        "--updates_per_rollout=2 --sequence_length=12 --batch_size=32 --warmup_steps=0 --compile=graph --max_steps=24 "
        "--log_every=4 --validate_every=12 --checkpoint_every=12 --sample_tokens=0 --learning_rate=0.02 "
        "--schedule=constant --save_best=false"
    ).split()
    return parse(*flags, *more)


@pytest.fixture(scope="module")
def rewarded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rewarded")
    assert train_recipe(reward_recipe(base, directory)) == 0
    return directory


def test_a_run_earns_more_and_more(rewarded: Path):
    found = rows(rewarded / "run")
    rewards = [row["train_reward"] for row in found if "train_reward" in row]
    assert rewards[-1] > 2 * rewards[0] and rewards[-1] > 0.3
    assert found[-1]["train_kl"] > found[1]["train_kl"] >= 0
    assert {"validation_reward", "validation_pass_rate", "validation_sampled_pass_rate"} <= found[-1].keys()
    assert found[-1]["validation_loss"] == -found[-1]["validation_reward"]


def test_the_run_goes_on_bit_for_bit(base: Path, rewarded: Path, tmp_path: Path):
    shutil.copytree(rewarded, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "run" / "checkpoints" / "step-00000024")
    assert train_recipe(reward_recipe(base, tmp_path / "copy")) == 0
    assert_same_end(rewarded / "run", tmp_path / "copy" / "run")


@pytest.fixture
def sampled(monkeypatch) -> list[tuple]:
    """The arguments and the answers of every call of `RolloutBuffer.sample`."""
    calls, sample = [], RolloutBuffer.sample

    def noted(self, *given):
        calls.append((*given, sample(self, *given)))
        return calls[-1][-1]

    monkeypatch.setattr(RolloutBuffer, "sample", noted)
    return calls


def rounds(recipe: TrainConfig):
    objective = GRPO()
    return build_trainer_and_data(recipe, objective.prepare(recipe), tf.distribute.get_strategy(), objective)[1]


def test_a_round_is_sampled_once_however_often_its_batches_are_asked_for(base: Path, tmp_path: Path, sampled):
    # As --compile=auto does, for each mode, before the first update.
    data = rounds(reward_recipe(base, tmp_path, "--rollout_temperature=0.7"))
    first = [next(data.batches(0))["token_ids"].numpy() for _ in range(3)]
    assert len(sampled) == 1 and all(np.array_equal(first[0], other) for other in first)
    next(data.batches(2))
    asked = [(len(prompts), answers, temperature) for prompts, _, answers, temperature, _ in sampled]
    assert asked == [(8, 8, 0.7)] * 2


def test_each_update_learns_whole_answers_of_every_group_on_every_device(base: Path, tmp_path: Path, sampled):
    batches, learned = rounds(reward_recipe(base, tmp_path)).batches(0), []
    for batch in (next(batches) for _ in range(2)):
        columns = (batch[name].numpy() for name in ("token_ids", "targets", "weights"))
        for ids, targets, weights in zip(*columns, strict=True):
            prompt = ids[: np.flatnonzero(weights)[0] + 1]
            learned.append((tuple(prompt.tolist()), tuple(targets[weights > 0].tolist())))
    [(prompts, *_, groups)] = sampled
    expected = collections.Counter(
        (tuple(prompt.tolist()), (*answer.token_ids, *([] if answer.stop_token is None else [answer.stop_token])))
        for (_, prompt), answers in zip(prompts, groups, strict=True)
        for answer in answers
    )
    assert collections.Counter(learned) == expected
    # Two updates of 32 answers, 8 prompts: the rows of up to 4 devices have an answer to each prompt.
    assert [len({prompt for prompt, _ in learned[row : row + 8]}) for row in range(0, 64, 8)] == [8] * 8


def test_rounds_that_do_not_come_out_even_are_refused(base: Path, tmp_path: Path):
    for flag, problem in (
        ("--group_size=7", "--group_size: 7 does not divide the 64 answers of a rollout"),
        ("--log_every=5", "--log_every: 5 is not a multiple of --updates_per_rollout=2"),
        ("--max_completion_length=13", "--max_completion_length: 13 leave no room for a prompt"),
    ):
        with pytest.raises(SettingError, match=problem):
            reward_recipe(base, tmp_path, flag)


def test_prompts_that_leave_no_room_for_an_answer_are_counted_under_the_flags_as_they_were_given(base, tmp_path):
    recipe = reward_recipe(base, tmp_path, "--max_completion_length=11")
    with pytest.raises(SettingError) as caught:
        get_objective(recipe.objective.objective).prepare(recipe)
    assert str(caught.value).startswith("--train_text: none of 12 prompts is left: 12 too long for ")
    assert str(caught.value).endswith("--sequence_length=12 with --max_completion_length=11 (the shortest takes 3)")
