"""Learning from rewards: GRPO (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300).

Each round samples a group of answers to each of some prompts with the model as it is, rewards them, and makes one or a
few updates. With A an answer's reward, less its group's mean and over its group's standard deviation, r the ratio of a
token's probability to what it was when the answer was sampled, and q the reference's probability over the model's own,
an answer's loss is the mean over its tokens of

    -min(r A, clip(r, 1 - c, 1 + c) A) + b (q - log q - 1)

(equations 3 and 4, outcome supervision; the last part is Schulman's k3 estimate of the divergence), and the update's
loss the mean over answers. With one update a round r is 1, and its gradient the policy gradient. The standard deviation
is the sample's (n - 1) with 1e-4 added, as in trl.

Sampling is deterministic: the seeds of a round's answers are functions of the run's seed and the prompt's number. So a
run goes on bit for bit from a checkpoint, which always falls between two rounds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import SettingError
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Completion, Generator
from tfgpt.generation.prompts import encode
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.pipeline.batches import EpochShuffle
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.training.distribution.strategy import distributed
from tfgpt.training.objectives.base import Objective, TrainingData, ValidationData
from tfgpt.training.objectives.example_batches import in_order
from tfgpt.training.objectives.preference_config import ANSWERS_AT_A_TIME, RewardConfig
from tfgpt.training.objectives.preferences import TokenLogProbabilities, token_nats
from tfgpt.training.objectives.prompt_records import PromptRecord, are_conversations, as_row, fingerprint_of, read_sides
from tfgpt.training.objectives.rewards import RewardInput, rewards_of, total_reward
from tfgpt.training.train_config import TrainConfig

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PromptData:
    """Prompts with what their answers are judged by.

    Attributes:
        train, validation: the records and their prompts' ids.
        tokenizer, fingerprint, manifest: as `Objective.prepare` says.
    """

    train: list[tuple[PromptRecord, np.ndarray]]
    validation: list[tuple[PromptRecord, np.ndarray]]
    tokenizer: Tokenizer
    fingerprint: str
    manifest: dict[str, Any]


class GRPO(Objective):
    """Prompts from JSON Lines, answers from the model, rewards from functions."""

    def prepare(self, recipe: TrainConfig, say: Callable[[str], None] = print) -> PromptData:
        rewards = rewards_of(recipe.reward)
        tokenizer = load_tokenizer(recipe.initial_model)
        sides = []
        held_out = "validation_text" if recipe.corpus.validation_text else "validation_fraction"
        longest = recipe.batch.sequence_length + 1 - recipe.reward.max_completion_length
        for name, records in zip(("train_text", held_out), read_sides(recipe.corpus)):
            prompts = [(record, encode(tokenizer, record.prompt, tools=record.tools)) for record in records]
            fitting = [(record, ids) for record, ids in prompts if len(ids) <= longest]
            if len(fitting) < len(prompts):
                say(f"Rewards: {len(prompts) - len(fitting)} prompts of more than {longest} tokens are left out")
            if not fitting:
                shortest = min((len(ids) for _, ids in prompts), default=0)
                problem = f"none of {len(prompts)} prompts (the shortest has {shortest} tokens) fits into "
                problem += f"--sequence_length={recipe.batch.sequence_length} with "
                problem += f"--max_completion_length={recipe.reward.max_completion_length} behind it"
                raise SettingError(name, problem)
            # A record that cannot be judged is named now, not in the middle of the run.
            for record, _ in fitting:
                total_reward(rewards, RewardInput("", 0, True, record))
            sides.append(fitting)
        train, validation = sides
        self.conversations = are_conversations([record for record, _ in train])
        contents = [repr(sorted(record.content.items())) for side in sides for record, _ in side]
        fingerprint = fingerprint_of({}, tokenizer.fingerprint, str(len(train)), *contents)
        manifest = {
            "fingerprint": fingerprint,
            "corpus": recipe.corpus.to_dict(),
            "train": {"prompts": len(train)},
            "validation": {"prompts": len(validation)},
        }
        return PromptData(train, validation, tokenizer, fingerprint, manifest)

    def describe_data(self, recipe: TrainConfig, data: PromptData) -> str:
        answers = recipe.batch.batch_size * recipe.run.max_steps
        return (
            f"{len(data.train):,} prompts to learn from, {len(data.validation):,} held out; the run samples "
            f"{answers:,} answers, {recipe.reward.group_size} to a prompt"
        )

    def uses_segments(self, recipe: TrainConfig) -> bool:
        return False

    def loss(self, recipe: TrainConfig) -> GRPOLoss:
        return GRPOLoss(recipe.reward, recipe.step.cross_entropy_chunk_tokens)

    def build_data(
        self, recipe: TrainConfig, data: PromptData, strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        if isinstance(strategy, (tf.distribute.MultiWorkerMirroredStrategy, tf.distribute.TPUStrategy)):
            raise SettingError("strategy", "grpo samples on one machine's CPU or GPUs: use one or mirrored")
        rounds = RolloutBuffer(recipe, data, trainer)
        # A step is always sampled with the same weights: what `choose_compilation` measures on is the first round.
        answers = functools.lru_cache(maxsize=1)(rounds.answers)

        def batches(first_step: int) -> Any:
            make = functools.partial(
                in_order, answers(first_step), batch_size=recipe.batch.batch_size, first=rounds.place(first_step)
            )
            return iter(distributed(strategy, make))

        return TrainingData(batches, ValidationData(None, 0), {}, recipe.reward.updates_per_rollout, rounds.measure)


class RolloutBuffer:
    """Samples and rewards answers.

    Args:
        recipe: the run's settings.
        data: the prompts.
        trainer: whose decoder writes, with the weights that it has then.
    """

    def __init__(self, recipe: TrainConfig, data: PromptData, trainer: Any):
        self.config, self.data, self.seed = recipe.reward, data, recipe.run.seed
        self.length = recipe.batch.sequence_length
        self.batch_size = recipe.batch.batch_size
        self.prompts = self.batch_size * self.config.updates_per_rollout // self.config.group_size
        self.rewards = rewards_of(self.config)
        self.generator = Generator(trainer.decoder, data.tokenizer)
        self.order = functools.lru_cache(maxsize=2)(EpochShuffle(len(data.train), 1, recipe.run.seed).small_permutation)
        self.policy = TokenLogProbabilities(trainer.decoder)
        self.reference = None
        if self.config.kl_penalty:
            with tf.init_scope():
                self.reference = TokenLogProbabilities(load_decoder(recipe.initial_model, dtype=recipe.step.dtype))

    def place(self, step: int) -> int:
        """Which of its round's updates a step is."""
        return step % self.config.updates_per_rollout

    def answers(self, step: int) -> Arrays:
        """The rows of a whole round, in the order in which the updates take them."""
        first = step // self.config.updates_per_rollout * self.prompts
        numbers = range(first, first + self.prompts)
        count = len(self.data.train)
        chosen = [self.data.train[self.order(number // count)[number % count]] for number in numbers]
        seeds = [self.sampling_seed("round", number) for number in numbers]
        sampled = self.sample(chosen, seeds, self.config.group_size, self.config.rollout_temperature)
        rows = [self.row(prompt, completion) for prompt, group in zip(chosen, sampled) for completion in group]
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        judged = [
            self.judged(record, completion) for (record, _), group in zip(chosen, sampled) for completion in group
        ]
        rewards, passed = np.array(judged, np.float32).T
        arrays |= {
            "advantages": advantages(rewards.reshape(-1, self.config.group_size)).reshape(-1),
            "rewards": rewards,
            "passed": passed,
        }
        # A group's answers are spread over the round's updates and devices, each of which sees all groups.
        spread = np.arange(len(rows)).reshape(self.prompts, -1).T.reshape(-1)
        arrays = {name: array[spread] for name, array in arrays.items()}
        if self.config.updates_per_rollout > 1:
            arrays["sampled_nats"] = self.policy(arrays)
        if self.reference is not None:
            arrays["reference_nats"] = self.reference(arrays)
        return arrays

    def measure(self) -> dict[str, float]:
        """On the held-out prompts: `loss` (the mean reward with its sign changed), `reward`, `pass_rate` and
        `completion_length` of the likeliest answers, `sampled_pass_rate` of one sampled answer each."""
        prompts = self.data.validation
        seeds = [self.sampling_seed("held out", number) for number in range(len(prompts))]
        likeliest, drawn = (
            [self.judged(record, found[0]) for (record, _), found in zip(prompts, self.sample(prompts, seeds, 1, heat))]
            for heat in (0.0, self.config.rollout_temperature)
        )
        reward, pass_rate = np.mean(likeliest, 0)
        return {
            "loss": -float(reward),
            "reward": float(reward),
            "pass_rate": float(pass_rate),
            "sampled_pass_rate": float(np.mean(drawn, 0)[1]),
        }

    def sample(
        self, prompts: Sequence[tuple[PromptRecord, np.ndarray]], seeds: Sequence[int], samples: int, temperature: float
    ) -> list[list[Completion]]:
        """Answers to each prompt, drawn from the model's own distribution."""
        plain = SamplingConfig(
            max_new_tokens=self.config.max_completion_length, temperature=temperature, top_k=0, num_samples=samples
        )
        configs = [dataclasses.replace(plain, seed=seed) for seed in seeds]
        steps = min(self.config.max_completion_length, 32)
        return self.generator.generate([ids for _, ids in prompts], configs, batch_size=ANSWERS_AT_A_TIME, steps=steps)

    def sampling_seed(self, kind: str, number: int) -> int:
        """A hash of the run's seed and the prompt's number."""
        digest = hashlib.blake2b(f"{kind} {self.seed} {number}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "little")

    def row(self, prompt: tuple[PromptRecord, np.ndarray], completion: Completion) -> Arrays:
        """Prompt and answer as a row; the answer's tokens and what ended it count."""
        answer = completion.token_ids + ([] if completion.stop_token is None else [completion.stop_token])
        ids = np.concatenate([prompt[1], answer]).astype(np.int32)
        weights = (np.arange(len(ids)) >= len(prompt[1])).astype(np.float32)
        row = as_row(ids, weights, self.length, self.data.tokenizer.padding_id)
        assert row is not None  # The prompts were chosen so that answers fit.
        return row

    def judged(self, record: PromptRecord, completion: Completion) -> tuple[float, float]:
        """The answer's reward, and whether it passes."""
        ended = completion.finish_reason == "stop"
        return total_reward(self.rewards, RewardInput(completion.text, len(completion.token_ids), ended, record))


def advantages(rewards: np.ndarray) -> np.ndarray:
    """[groups, answers] rewards, less their group's mean and over its standard deviation; float32."""
    centered = rewards - rewards.mean(1, keepdims=True)
    return (centered / (rewards.std(1, keepdims=True, ddof=1) + 1e-4)).astype(np.float32)


class GRPOLoss:
    """The sums of the module's formula over rows of answers; the step divides by the answers.

    Args:
        config: the settings.
        chunk_tokens: as `CausalLanguageModelingLoss`'s.

    Attributes:
        means: the further sums, each a mean an answer: `reward`, `pass_rate`, `completion_length`, `clipped` (the
            share of tokens that count no further), and with a reference `kl` a token.
    """

    unit = "answer"

    def __init__(self, config: RewardConfig, chunk_tokens: int = 0):
        self.config, self.chunk_tokens = config, chunk_tokens
        self.means = ("reward", "pass_rate", "completion_length", "clipped") + (("kl",) if config.kl_penalty else ())

    def __call__(
        self,
        decoder: Any,
        batch: Mapping[str, tf.Tensor],
        training: bool,
        token_byte_lengths: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The sums of one batch of rows; see `losses.CausalLanguageModelingLoss`."""
        weights, advantage = batch["weights"], batch["advantages"][:, tf.newaxis]
        nats = token_nats(decoder, batch["token_ids"], batch["targets"], training, self.chunk_tokens)
        counts = tf.maximum(tf.reduce_sum(weights, 1), 1.0)

        def mean_over_tokens(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(values * weights, 1) / counts

        sampled = batch["sampled_nats"] if "sampled_nats" in batch else tf.stop_gradient(nats)
        # Padding is no answer: what stands there must not overflow.
        ratio = tf.exp((sampled - nats) * weights)
        clipped = tf.clip_by_value(ratio, 1.0 - self.config.clip_epsilon, 1.0 + self.config.clip_epsilon)
        objective = tf.minimum(ratio * advantage, clipped * advantage)
        losses = -mean_over_tokens(objective)
        sums = {}
        if self.config.kl_penalty:
            change = (nats - batch["reference_nats"]) * weights  # log of reference over policy
            divergence = mean_over_tokens(tf.exp(change) - change - 1.0)
            losses += self.config.kl_penalty * divergence
            sums["kl"] = tf.reduce_sum(divergence)
        loss_sum = tf.reduce_sum(losses)
        return sums | {
            "loss_sum": loss_sum,
            "nll_sum": loss_sum,
            "weight_sum": tf.cast(tf.shape(losses)[0], tf.float32),
            "reward": tf.reduce_sum(batch["rewards"]),
            "pass_rate": tf.reduce_sum(batch["passed"]),
            "completion_length": tf.reduce_sum(weights),
            "clipped": tf.reduce_sum(mean_over_tokens(tf.cast(objective < ratio * advantage, tf.float32))),
        }
