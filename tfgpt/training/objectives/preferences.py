"""Learning from pairs of answers, of which one is better: DPO, IPO, ORPO and SimPO.

With p the log probability that the model gives an answer and q the one that the reference gives it (sums over the
answer's tokens, or means with length normalization), and d the difference between the chosen and the rejected one:

- dpo: -log sigmoid(beta (d p - d q)), Rafailov et al. 2023 (arXiv:2305.18290, equation 7); with label smoothing e
  (1 - e) of it and e of the swapped one (Mitchell's conservative DPO).
- ipo: (d p - d q - 1 / (2 beta))^2, Azar et al. 2023 (arXiv:2310.12036, equation 17), with means, as trl has it.
- orpo: -p chosen - beta log sigmoid(log odds), odds e^p / (1 - e^p), Hong et al. 2024 (arXiv:2403.07691, equations 4
  to 7), with means. No reference.
- simpo: -log sigmoid(beta d p - margin), Meng et al. 2024 (arXiv:2405.14734, equation 6), with means. No reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import tensorflow as tf
from safetensors import SafetensorError

from tfgpt.common.adapters import base_directory
from tfgpt.common.atomic_files import atomic_write
from tfgpt.common.errors import UserError
from tfgpt.common.progress import Progress
from tfgpt.corpus.cache import cached_stage
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.model.checkpoints.safetensors_file import weights_fingerprint
from tfgpt.model.cost import automatic_chunk_tokens
from tfgpt.model.decoder import Decoder
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.training.losses import FusedLinearCrossEntropy
from tfgpt.training.objective_config import PreferenceConfig
from tfgpt.training.objectives.base import Objective, TrainingData
from tfgpt.training.objectives.prompt_records import (
    PromptRecord,
    Unusable,
    are_conversations,
    encode_answer,
    encode_records,
    hash_arrays,
    parse_answer,
    prepared_records,
    read_sides,
    side_flags,
    to_row,
)
from tfgpt.training.objectives.readers import ExampleReader, training_data
from tfgpt.training.train_config import TrainConfig

Arrays = dict[str, np.ndarray]
ANSWERS = ("chosen", "rejected")
WITH_REFERENCE = ("dpo", "ipo")
# Tokens that the reference reads at a time.
REFERENCE_TOKENS = 4096


class PreferenceTuning(Objective):
    """Learns from pairs in JSON Lines: `prompt` (or `messages`), `chosen`, `rejected`, as in trl.

    The prepared sides are `token_ids`, `targets` int32 and `weights` float32 [pairs, 2, T] (chosen, rejected),
    `example_weights` float32 [pairs, 2], and for objectives with a reference `reference_nll` float32 [pairs, 2, T].
    """

    segments = False

    def prepare(self, recipe: TrainConfig, log: Callable[[str], None] = print) -> PreparedData[Arrays]:
        tokenizer, corpus = load_tokenizer(recipe.initial_model), recipe.corpus
        sides = read_sides(corpus, lambda record: [parse_answer(record, name) for name in ANSWERS])
        self.conversations = are_conversations(sides[0])
        length = recipe.batch.sequence_length

        def encode_pair(record: PromptRecord) -> list[Arrays] | Unusable:
            answers = [parse_answer(record, name) for name in ANSWERS]
            if answers[0] == answers[1]:
                return Unusable("with equal answers")
            encoded = [encode_answer(tokenizer, record.prompt, answer, record.tools) for answer in answers]
            rows = [to_row(ids, weights, length, tokenizer.padding_id) for ids, weights in encoded]
            if None in rows:
                return Unusable(f"longer than --sequence_length={length}", max(len(ids) for ids, _ in encoded) - 1)
            return [row for row in rows if row]

        prepared = []
        for side, flag in zip(sides, side_flags(corpus)):
            pairs = encode_records(side, flag, "pairs", encode_pair, log)
            arrays = {name: np.array([[row[name] for row in pair] for pair in pairs]) for name in pairs[0][0]}
            prepared.append(arrays | {"example_weights": np.ones((len(pairs), 2), np.float32)})
        train, validation = prepared
        arrays = {f"t/{name}": array for name, array in train.items()}
        arrays |= {f"v/{name}": array for name, array in validation.items()}
        fingerprint = hash_arrays(arrays, tokenizer.fingerprint)
        if recipe.objective.objective in WITH_REFERENCE:
            for arrays in prepared:
                arrays["reference_nll"] = reference_nll(recipe, arrays, log)
        counts = len(train["token_ids"]), len(validation["token_ids"])
        return prepared_records(corpus, "pairs", counts, train, validation, tokenizer, fingerprint)

    def describe_data(self, recipe: TrainConfig, data: PreparedData[Arrays]) -> str:
        pairs, read = len(data.train["token_ids"]), recipe.batch.batch_size * recipe.run.max_steps
        return (
            f"{pairs:,} pairs to learn from, {len(data.validation['token_ids']):,} held out; the run reads {read:,}, "
            f"{read / pairs:.2g} times all"
        )

    def rows(self, recipe: TrainConfig) -> int:
        return 2 * recipe.batch.batch_size

    def loss(self, recipe: TrainConfig) -> PreferenceLoss:
        return PreferenceLoss(recipe.objective.objective, recipe.preference, recipe.step.cross_entropy_chunk_tokens)

    def build_data(
        self, recipe: TrainConfig, data: PreparedData[Arrays], strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        # A pair's two rows are next to each other, so that micro-batches divide no pair.
        train = ExampleReader(data.train, seed=recipe.run.seed, pairs=True)
        return training_data(strategy, recipe.batch.batch_size, train, ExampleReader(data.validation, pairs=True))


class PreferenceLoss:
    """Sums of `pair_losses` over a batch of pairs; the step divides by the number of pairs.

    Attributes:
        means: names of further sums, which become means over pairs: `accuracy`; `reward_margin`, the chosen answer's
            implicit reward minus the rejected one's; `chosen_log_probability` and `rejected_log_probability`, a token;
            `kl`, an estimate of the divergence from the reference a token (Schulman's k3) on the tokens of the pairs.
    """

    def __init__(self, objective: str, config: PreferenceConfig, chunk_tokens: int = 0):
        self.objective, self.config, self.chunk_tokens = objective, config, chunk_tokens
        self.has_reference = objective in WITH_REFERENCE
        names = ("accuracy", "reward_margin", "chosen_log_probability", "rejected_log_probability")
        self.means: tuple[str, ...] = (*names, "kl") if self.has_reference else names

    def __call__(self, decoder: Any, batch: Mapping[str, tf.Tensor], training: bool, **_: Any) -> dict[str, tf.Tensor]:
        """Returns the sums of a batch of rows, chosen and rejected in turn."""
        weights = batch["weights"]
        nll = token_nll(decoder, batch["token_ids"], batch["targets"], training, self.chunk_tokens)
        pair_weights = tf.reshape(batch["example_weights"], [-1, 2])[:, 0]

        def sum_of_answers(by_token: tf.Tensor) -> tf.Tensor:
            return tf.reshape(tf.reduce_sum(by_token * weights, 1), [-1, 2])  # (pairs, 2)

        def total(by_pair: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(by_pair * pair_weights)

        counts = tf.maximum(sum_of_answers(tf.ones_like(weights)), 1.0)
        normalization = self.config.preference_length_normalization
        if normalization is None:
            normalization = self.objective != "dpo"
        lengths = counts if normalization else tf.ones_like(counts)
        log_probabilities = -sum_of_answers(nll)
        reference = -sum_of_answers(batch["reference_nll"]) / lengths if self.has_reference else None
        losses, rewards = pair_losses(self.objective, self.config, log_probabilities / lengths, reference)
        by_token = log_probabilities / counts
        loss_sum = total(losses)
        sums = {
            "loss_sum": loss_sum,
            "nll_sum": loss_sum,
            "weight_sum": tf.reduce_sum(pair_weights),
            "accuracy": total(tf.cast(rewards[:, 0] > rewards[:, 1], tf.float32)),
            "reward_margin": total(rewards[:, 0] - rewards[:, 1]),
            "chosen_log_probability": total(by_token[:, 0]),
            "rejected_log_probability": total(by_token[:, 1]),
        }
        if self.has_reference:
            change = nll - batch["reference_nll"]  # log of reference over policy
            divergence = sum_of_answers(tf.exp(change) - 1.0 - change) / counts
            sums["kl"] = total(tf.reduce_mean(divergence, 1))
        return sums


def pair_losses(
    objective: str, config: PreferenceConfig, policy: tf.Tensor, reference: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss [pairs] and the implicit rewards [pairs, 2] of each pair, float32.

    `policy` and `reference` (None for orpo and simpo) are [pairs, 2] float32, log probabilities of the chosen and the
    rejected answer, sums or means. Rewards are beta (p - q), or beta p without reference (as trl logs them).
    """
    beta = config.preference_beta
    scores = policy if reference is None else policy - reference
    difference = scores[:, 0] - scores[:, 1]
    rewards = beta * scores
    if objective == "ipo":
        return tf.square(difference - 1.0 / (2.0 * beta)), rewards
    if objective == "orpo":
        log_odds = policy - log_of_one_minus_exp(policy)
        odds_ratio = log_odds[:, 0] - log_odds[:, 1]
        return -policy[:, 0] - beta * tf.math.log_sigmoid(odds_ratio), rewards
    logits = beta * difference - (config.preference_margin if objective == "simpo" else 0.0)
    smoothing = config.preference_label_smoothing
    losses = -(1.0 - smoothing) * tf.math.log_sigmoid(logits) - smoothing * tf.math.log_sigmoid(-logits)
    return losses, rewards


def log_of_one_minus_exp(values: tf.Tensor) -> tf.Tensor:
    """Returns log(1 - e^x) for x < 0, exact near 0 and far from it (Mächler 2012)."""
    values = tf.minimum(values, -1e-7)
    near = values > -0.6931472
    # Each branch gets arguments for which it is finite: the gradient of the branch not taken counts as well.
    first = tf.math.log(-tf.math.expm1(tf.where(near, values, -0.6931472)))
    second = tf.math.log1p(-tf.exp(tf.where(near, -0.6931472, values)))
    return tf.where(near, first, second)


def reference_nll(recipe: TrainConfig, pairs: Arrays, log: Callable[[str], None]) -> np.ndarray:
    """Returns the cross-entropy of every token under the model of --init_from, [pairs, 2, T] float32.

    Computed once and kept in the cache, under a hash of the rows, the model's weights and the dtype.
    """
    directory, dtype = recipe.initial_model, recipe.step.dtype
    rows = {name: pairs[name] for name in ("token_ids", "targets")}
    base = base_directory(directory)
    adapter = [] if base == directory else [safetensors.numpy.load_file(directory / "adapter_model.safetensors")]
    key = hash_arrays(rows, weights_fingerprint(base), *map(hash_arrays, adapter), dtype)
    path = recipe.corpus.cache_directory / "references" / f"{key[:32]}.safetensors"

    def open_entry() -> np.ndarray:
        try:
            return safetensors.numpy.load_file(path)["reference_nats"]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error})") from error

    def make_entry() -> np.ndarray:
        nll = TokenNLL(load_decoder(directory, dtype=dtype))(rows, "reference")
        with atomic_write(path) as temporary:
            safetensors.numpy.save_file({"reference_nats": nll}, temporary)
        return nll

    return cached_stage(
        "reference",
        path,
        (),
        open_entry=open_entry,
        make_entry=make_entry,
        describe=lambda nll: f"log probabilities of {len(nll):,} pairs by {directory}",
        log=log,
    )


class TokenNLL:
    """Computes a decoder's cross-entropy of every target, some rows at a time, by one graph, with current weights."""

    def __init__(self, decoder: Decoder):
        self.function = tf.function(
            lambda ids, targets: token_nll(decoder, ids, targets, training=False), autograph=False
        )

    def __call__(self, rows: Mapping[str, np.ndarray], title: str | None = None) -> np.ndarray:
        """Returns [..., T] float32 for `token_ids` and `targets` int32 [..., T]; a title shows a progress bar."""
        shape = rows["token_ids"].shape
        token_ids, targets = (rows[name].reshape(-1, shape[-1]) for name in ("token_ids", "targets"))
        count = min(len(token_ids), max(1, REFERENCE_TOKENS // shape[-1]))
        nll = np.zeros(token_ids.shape, np.float32)
        with Progress(len(token_ids), "row", title or "", silent=title is None) as progress:
            for start in range(0, len(token_ids), count):
                part = slice(start, start + count)
                filled = [np.resize(array[part], (count, shape[-1])) for array in (token_ids, targets)]
                nll[part] = self.function(*filled).numpy()[: len(token_ids[part])]
                progress.advance(len(token_ids[part]))
        return nll.reshape(shape)


def token_nll(
    decoder: Decoder, token_ids: tf.Tensor, targets: tf.Tensor, training: bool, chunk_tokens: int = 0
) -> tf.Tensor:
    """Returns the cross-entropy of each target, [rows, T] float32, given [rows, T] int32 padded on the right."""
    hidden = decoder.backbone({"token_ids": token_ids}, training=training)
    hidden = tf.reshape(hidden, [-1, hidden.shape[-1]])
    head = FusedLinearCrossEntropy(
        0.0,
        0.0,
        decoder.config.logit_soft_cap,
        chunk_tokens or automatic_chunk_tokens(hidden.shape[0], decoder.config.vocabulary_size),
        frozen_head=not decoder.output_variable.trainable,
    )
    flat = tf.reshape(targets, [-1])
    if training:
        nll = head.per_token_nll(hidden, decoder.output_weights(), flat)
    else:
        nll = head.per_token(hidden, decoder.output_weights(), flat)[1]
    return tf.reshape(nll, tf.shape(targets))
