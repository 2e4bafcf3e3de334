"""Learning from rewards: GRPO (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300).

Each rollout samples a group of answers to each of some prompts with the current model, rewards them, and makes one or a
few updates. With A an answer's reward, less its group's mean and over its group's standard deviation, r the ratio of a
token's probability to what it was when the answer was sampled, and q the reference's probability over the model's own,
an answer's loss is the mean over its tokens of

    -min(r A, clip(r, 1 - c, 1 + c) A) + b (q - log q - 1)

(equations 3 and 4, outcome supervision; the last part is Schulman's k3 estimate of the divergence), and the update's
loss the mean over answers. With one update a rollout r is 1, and its gradient the policy gradient. The standard
deviation is the sample's (n - 1) with 1e-4 added, as in trl.

Sampling is deterministic: the seeds of a rollout's answers are functions of the run's seed and the prompt's number. So
a run resumes bit for bit from a checkpoint, which always falls between two rollouts.
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
from tfgpt.pipeline.batches import training_batches
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.pipeline.shuffling import seeded_permutation
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.training.distribution.strategy import distributed
from tfgpt.training.objective_config import ANSWERS_AT_A_TIME, RewardConfig
from tfgpt.training.objectives.base import Objective, TrainingData, ValidationData
from tfgpt.training.objectives.preferences import TokenNLL, token_nll
from tfgpt.training.objectives.prompt_records import (
    PromptRecord,
    Unusable,
    are_conversations,
    encode_records,
    hash_arrays,
    prepared_records,
    read_sides,
    side_flags,
    to_row,
)
from tfgpt.training.objectives.readers import ExampleReader
from tfgpt.training.objectives.rewards import RewardInput, load_rewards, total_reward
from tfgpt.training.train_config import TrainConfig

Arrays = dict[str, np.ndarray]
# A record and the ids of its prompt.
Prompts = list[tuple[PromptRecord, np.ndarray]]


class GRPO(Objective):
    """Learns from prompts in JSON Lines, answers of the model, and rewards from functions."""

    segments = False

    def prepare(self, recipe: TrainConfig, log: Callable[[str], None] = print) -> PreparedData[Prompts]:
        rewards = load_rewards(recipe.reward)
        tokenizer, corpus = load_tokenizer(recipe.initial_model), recipe.corpus
        length, answer_tokens = recipe.batch.sequence_length, recipe.reward.max_completion_length

        def encode_prompt(record: PromptRecord) -> tuple[PromptRecord, np.ndarray] | Unusable:
            ids = encode(tokenizer, record.prompt, tools=record.tools)
            if len(ids) > length + 1 - answer_tokens:
                room = f"--sequence_length={length} with --max_completion_length={answer_tokens}"
                return Unusable(f"too long for {room}", len(ids))
            # A record that cannot be judged is reported now, not in the middle of the run.
            total_reward(rewards, RewardInput("", 0, True, record))
            return record, ids

        train, validation = (
            encode_records(side, flag, "prompts", encode_prompt, log)
            for side, flag in zip(read_sides(corpus), side_flags(corpus))
        )
        self.conversations = are_conversations([record for record, _ in train])
        contents = [repr(sorted(record.content.items())) for record, _ in (*train, *validation)]
        fingerprint = hash_arrays({}, tokenizer.fingerprint, str(len(train)), *contents)
        counts = len(train), len(validation)
        return prepared_records(corpus, "prompts", counts, train, validation, tokenizer, fingerprint)

    def describe_data(self, recipe: TrainConfig, data: PreparedData[Prompts]) -> str:
        answers = recipe.batch.batch_size * recipe.run.max_steps
        return (
            f"{len(data.train):,} prompts to learn from, {len(data.validation):,} held out; the run samples "
            f"{answers:,} answers, {recipe.reward.group_size} to a prompt"
        )

    def loss(self, recipe: TrainConfig) -> GRPOLoss:
        return GRPOLoss(recipe.reward, recipe.step.cross_entropy_chunk_tokens)

    def build_data(
        self, recipe: TrainConfig, data: PreparedData[Prompts], strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        if isinstance(strategy, (tf.distribute.MultiWorkerMirroredStrategy, tf.distribute.TPUStrategy)):
            raise SettingError("strategy", "grpo samples on one machine's CPU or GPUs: use one or mirrored")
        rollouts = RolloutBuffer(recipe, data, trainer)
        # A step is always sampled with the same weights: what `choose_compilation` measures on is the first rollout.
        answers = functools.lru_cache(maxsize=1)(rollouts.answers)
        updates = recipe.reward.updates_per_rollout

        def batches(first_step: int) -> Any:
            reader, size = ExampleReader(answers(first_step)), recipe.batch.batch_size
            make = functools.partial(training_batches, reader, batch_size=size, start_step=first_step % updates)
            return iter(distributed(strategy, make))

        return TrainingData(batches, ValidationData(None, 0), {}, updates, rollouts.evaluate)


class RolloutBuffer:
    """Samples answers to the prompts, with the current weights of the trainer's decoder, and rewards them."""

    def __init__(self, recipe: TrainConfig, data: PreparedData[Prompts], trainer: Any):
        self.config, self.data, self.seed = recipe.reward, data, recipe.run.seed
        self.length = recipe.batch.sequence_length
        self.prompts = recipe.batch.batch_size * self.config.updates_per_rollout // self.config.group_size
        self.rewards = load_rewards(self.config)
        self.generator = Generator(trainer.decoder, data.tokenizer)
        self.policy = TokenNLL(trainer.decoder)
        self.reference = None
        if self.config.kl_penalty:
            with tf.init_scope():
                self.reference = TokenNLL(load_decoder(recipe.initial_model, dtype=recipe.step.dtype))

    def answers(self, step: int) -> Arrays:
        """Returns the rows of the rollout of a step, in the order of its updates."""
        config, count = self.config, len(self.data.train)
        first = step // config.updates_per_rollout * self.prompts
        numbers = range(first, first + self.prompts)
        orders = [seeded_permutation(f"order {self.seed} {number // count}", count) for number in numbers]
        chosen = [self.data.train[order[number % count]] for order, number in zip(orders, numbers)]
        seeds = [self.sampling_seed("round", number) for number in numbers]
        sampled = self.sample(chosen, seeds, config.group_size, config.rollout_temperature)
        answered = [(prompt, answer) for prompt, group in zip(chosen, sampled) for answer in group]
        rows = [self.row(ids, answer) for (_, ids), answer in answered]
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        judged = [self.judge(record, answer) for (record, _), answer in answered]
        arrays["rewards"], arrays["passed"] = np.array(judged, np.float32).T
        arrays["advantages"] = advantages(arrays["rewards"].reshape(-1, config.group_size)).reshape(-1)
        # The answers of a group are spread over the rollout's updates and devices, each of which sees all groups.
        spread = np.arange(len(rows)).reshape(self.prompts, -1).T.reshape(-1)
        arrays = {name: array[spread] for name, array in arrays.items()}
        if config.updates_per_rollout > 1:
            arrays["sampled_nll"] = self.policy(arrays)
        if self.reference is not None:
            arrays["reference_nll"] = self.reference(arrays)
        return arrays

    def evaluate(self) -> dict[str, float]:
        """Returns metrics of the held-out prompts.

        `loss` (the mean reward with its sign changed), `reward` and `pass_rate` are of the likeliest answers,
        `sampled_pass_rate` is of one sampled answer to each prompt.
        """
        prompts = self.data.validation
        seeds = [self.sampling_seed("held out", number) for number in range(len(prompts))]
        likeliest, sampled = (
            [
                self.judge(record, answers[0])
                for (record, _), answers in zip(prompts, self.sample(prompts, seeds, 1, temperature))
            ]
            for temperature in (0.0, self.config.rollout_temperature)
        )
        reward, pass_rate = np.mean(likeliest, 0)
        return {
            "loss": -float(reward),
            "reward": float(reward),
            "pass_rate": float(pass_rate),
            "sampled_pass_rate": float(np.mean(sampled, 0)[1]),
        }

    def sample(
        self, prompts: Prompts, seeds: Sequence[int], samples: int, temperature: float
    ) -> list[list[Completion]]:
        longest = self.config.max_completion_length
        config = SamplingConfig(max_new_tokens=longest, temperature=temperature, top_k=0, num_samples=samples)
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
        ids = [ids for _, ids in prompts]
        return self.generator.generate(ids, configs, batch_size=ANSWERS_AT_A_TIME, steps=min(longest, 32))

    def sampling_seed(self, kind: str, number: int) -> int:
        digest = hashlib.blake2b(f"{kind} {self.seed} {number}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "little")

    def row(self, prompt: np.ndarray, completion: Completion) -> Arrays:
        """Returns prompt and answer as a row; the answer's tokens and its stop token are targets."""
        answer = completion.token_ids + ([] if completion.stop_token is None else [completion.stop_token])
        ids = np.concatenate([prompt, answer]).astype(np.int32)
        weights = (np.arange(len(ids)) >= len(prompt)).astype(np.float32)
        row = to_row(ids, weights, self.length, self.data.tokenizer.padding_id)
        assert row is not None  # Prompts leave room for their answers.
        return row

    def judge(self, record: PromptRecord, completion: Completion) -> tuple[float, float]:
        ended = completion.finish_reason == "stop"
        return total_reward(self.rewards, RewardInput(completion.text, len(completion.token_ids), ended, record))


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Returns [groups, answers] rewards, less their group's mean and over its standard deviation; float32."""
    centered = rewards - rewards.mean(1, keepdims=True)
    return (centered / (rewards.std(1, keepdims=True, ddof=1) + 1e-4)).astype(np.float32)


class GRPOLoss:
    """Sums of the module's formula over rows of answers; the step divides by the number of answers.

    Attributes:
        means: names of further sums, which become means over answers: `reward`, `pass_rate`, `completion_length`,
            `clipped` (the share of clipped tokens), and with a reference `kl` a token.
    """

    def __init__(self, config: RewardConfig, chunk_tokens: int = 0):
        self.config, self.chunk_tokens = config, chunk_tokens
        self.means = ("reward", "pass_rate", "completion_length", "clipped") + (("kl",) if config.kl_penalty else ())

    def __call__(self, decoder: Any, batch: Mapping[str, tf.Tensor], training: bool, **_: Any) -> dict[str, tf.Tensor]:
        weights, advantage = batch["weights"], batch["advantages"][:, tf.newaxis]
        nll = token_nll(decoder, batch["token_ids"], batch["targets"], training, self.chunk_tokens)
        counts = tf.maximum(tf.reduce_sum(weights, 1), 1.0)

        def mean_over_tokens(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(values * weights, 1) / counts

        sampled = batch["sampled_nll"] if "sampled_nll" in batch else tf.stop_gradient(nll)
        # Values of padding must not overflow.
        ratio = tf.exp((sampled - nll) * weights)
        clipped = tf.clip_by_value(ratio, 1.0 - self.config.clip_epsilon, 1.0 + self.config.clip_epsilon)
        objective = tf.minimum(ratio * advantage, clipped * advantage)
        losses = -mean_over_tokens(objective)
        sums = {}
        if self.config.kl_penalty:
            change = (nll - batch["reference_nll"]) * weights  # log of reference over policy
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
