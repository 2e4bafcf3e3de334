"""Learning from pairs of answers: which one is better. DPO, IPO, ORPO and SimPO."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
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
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.training.distribution.strategy import distributed
from tfgpt.training.losses import FusedLinearCrossEntropy
from tfgpt.training.objectives.base import Objective, TrainingData, ValidationData
from tfgpt.training.objectives.example_batches import training_examples, validation_examples, validation_examples_steps
from tfgpt.training.objectives.preference_config import PreferenceConfig
from tfgpt.training.objectives.preference_losses import WITH_REFERENCE, normalizes_length, pair_losses
from tfgpt.training.objectives.prompt_records import (
    PromptRecord,
    answer_of,
    are_conversations,
    as_row,
    encoded,
    fingerprint_of,
    read_sides,
)
from tfgpt.training.train_config import TrainConfig

Arrays = dict[str, np.ndarray]
# Tokens that the reference reads at a time.
REFERENCE_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class PairData:
    """Pairs as rows of ids.

    Attributes:
        train, validation: `token_ids`, `targets` int32 and `weights` float32 [pairs, 2, T] (chosen, rejected),
            `example_weights` float32 [pairs, 2], and where the objective has a reference `reference_nats` float32
            [pairs, 2, T].
        tokenizer, fingerprint, manifest: as `Objective.prepare` says.
    """

    train: Arrays
    validation: Arrays
    tokenizer: Tokenizer
    fingerprint: str
    manifest: dict[str, Any]


class PreferenceTuning(Objective):
    """Pairs from JSON Lines: `prompt` (or `messages`), `chosen`, `rejected`, as trl's."""

    def prepare(self, recipe: TrainConfig, say: Callable[[str], None] = print) -> PairData:
        tokenizer = load_tokenizer(recipe.initial_model)
        sides = read_sides(recipe.corpus, lambda record: [answer_of(record, name) for name in ("chosen", "rejected")])
        self.conversations = are_conversations(sides[0])
        length = recipe.batch.sequence_length
        train, validation = (encode_pairs(tokenizer, side, length, say) for side in sides)
        fingerprint = fingerprint_of(
            {
                f"{side}/{name}": array
                for side, arrays in (("t", train), ("v", validation))
                for name, array in arrays.items()
            },
            tokenizer.fingerprint,
        )
        if recipe.objective.objective in WITH_REFERENCE:
            for side in (train, validation):
                side["reference_nats"] = reference_nats(recipe, side, say)
        manifest = {
            "fingerprint": fingerprint,
            "corpus": recipe.corpus.to_dict(),
            "train": {"pairs": len(train["token_ids"])},
            "validation": {"pairs": len(validation["token_ids"])},
        }
        return PairData(train, validation, tokenizer, fingerprint, manifest)

    def describe_data(self, recipe: TrainConfig, data: PairData) -> str:
        pairs, read = len(data.train["token_ids"]), recipe.batch.batch_size * recipe.run.max_steps
        return (
            f"{pairs:,} pairs to learn from, {len(data.validation['token_ids']):,} held out; the run reads {read:,}, "
            f"{read / pairs:.2g} times all"
        )

    def uses_segments(self, recipe: TrainConfig) -> bool:
        return False

    def rows(self, recipe: TrainConfig) -> int:
        return 2 * recipe.batch.batch_size

    def loss(self, recipe: TrainConfig) -> PreferenceLoss:
        return PreferenceLoss(recipe.objective.objective, recipe.preference, recipe.step.cross_entropy_chunk_tokens)

    def build_data(
        self, recipe: TrainConfig, data: PairData, strategy: tf.distribute.Strategy, trainer: Any = None
    ) -> TrainingData:
        size = recipe.batch.batch_size

        def batches(first_step: int) -> Any:
            make = functools.partial(
                training_examples, data.train, batch_size=size, seed=recipe.run.seed, start_step=first_step
            )
            return iter(distributed(strategy, as_rows(make)))

        make = functools.partial(validation_examples, data.validation, batch_size=size)
        steps = validation_examples_steps(len(data.validation["token_ids"]), size)
        return TrainingData(batches, ValidationData(distributed(strategy, as_rows(make)), steps))


def encode_pairs(tokenizer: Tokenizer, records: list[PromptRecord], length: int, say: Callable[[str], None]) -> Arrays:
    """The pairs that fit, as `PairData` has them; says how many do not, and why.

    Raises:
        UserError: none does, or a record has no chosen or no rejected answer.
    """
    pairs = []
    equal, too_long = 0, list[int]()
    for record in records:
        answers = [answer_of(record, name) for name in ("chosen", "rejected")]
        found = [encoded(tokenizer, record.prompt, answer, record.tools) for answer in answers]
        rows = [as_row(*one, length, tokenizer.padding_id) for one in found]
        if answers[0] == answers[1]:
            equal += 1
        elif None in rows:
            too_long.append(max(len(ids) for ids, _ in found) - 1)
        else:
            pairs.append(rows)
    reasons = [f"{equal} with equal answers"] if equal else []
    if too_long:
        reasons.append(f"{len(too_long)} longer than --sequence_length={length} (the shortest takes {min(too_long)})")
    if not pairs:
        raise UserError(f"--train_text: none of {len(records)} pairs is left: {', '.join(reasons)}")
    if reasons:
        say(f"Preferences: {len(records) - len(pairs)} of {len(records)} pairs are left out: {', '.join(reasons)}")
    shape = (len(pairs), 2, length)
    types = {"token_ids": np.int32, "targets": np.int32, "weights": np.float32}
    arrays: Arrays = {
        name: np.array([[row[name] for row in pair if row] for pair in pairs], dtype).reshape(shape)
        for name, dtype in types.items()
    }
    return arrays | {"example_weights": np.ones(shape[:2], np.float32)}


def as_rows(make: Callable[..., tf.data.Dataset]) -> Callable[..., tf.data.Dataset]:
    """Pairs [n, 2, …] as rows [2 n, …], a pair's two next to each other, so that micro-batches divide no pair."""

    def flat(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: tf.reshape(value, [2 * value.shape[0], *value.shape[2:]]) for name, value in batch.items()}

    return lambda **options: make(**options).map(flat)


def reference_nats(recipe: TrainConfig, pairs: Arrays, say: Callable[[str], None]) -> np.ndarray:
    """What the model of --init_from thinks of every token: its cross-entropy, [pairs, 2, T] float32.

    Computed once and kept in the cache, under a hash of the rows, the model's weights and the type computed in.
    """
    directory, dtype = recipe.initial_model, recipe.step.dtype
    rows = {name: pairs[name] for name in ("token_ids", "targets")}
    key = fingerprint_of(rows, *model_fingerprints(directory), dtype)
    path = recipe.corpus.cache_directory / "references" / f"{key[:32]}.safetensors"

    def make() -> np.ndarray:
        found = TokenLogProbabilities(load_decoder(directory, dtype=dtype))(rows, "reference")
        with atomic_write(path) as temporary:
            safetensors.numpy.save_file({"reference_nats": found}, temporary)
        return found

    return cached_stage(
        "reference",
        path,
        (),
        open_entry=lambda: read_reference(path),
        make_entry=make,
        describe=lambda found: f"log probabilities of {len(found):,} pairs by {directory}",
        log=say,
    )


def read_reference(path: Path) -> np.ndarray:
    """The log probabilities in a cache entry.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return safetensors.numpy.load_file(path)["reference_nats"]
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def model_fingerprints(directory: Path) -> list[str]:
    """Of a model's weights; of an adapter's and its base's."""
    base = base_directory(directory)
    own = [weights_fingerprint(base)]
    return (
        own
        if base == directory
        else [*own, fingerprint_of(safetensors.numpy.load_file(directory / "adapter_model.safetensors"))]
    )


class TokenLogProbabilities:
    """A decoder's cross-entropy of every target, computed some rows at a time by one graph.

    Args:
        decoder: not packed; its weights are read anew at each call.
    """

    def __init__(self, decoder: Decoder):
        self.function = tf.function(
            lambda ids, targets: token_nats(decoder, ids, targets, training=False), autograph=False
        )

    def __call__(self, rows: Mapping[str, np.ndarray], title: str | None = None) -> np.ndarray:
        """[..., T] float32 for `token_ids` and `targets` int32 [..., T]; with a title, under a progress bar."""
        shape = rows["token_ids"].shape
        token_ids, targets = (rows[name].reshape(-1, shape[-1]) for name in ("token_ids", "targets"))
        together = min(len(token_ids), max(1, REFERENCE_TOKENS // shape[-1]))
        found = np.zeros(token_ids.shape, np.float32)
        with Progress(len(token_ids), "row", title or "", silent=title is None) as progress:
            for start in range(0, len(token_ids), together):
                part = slice(start, start + together)
                filled = [np.resize(array[part], (together, shape[-1])) for array in (token_ids, targets)]
                found[part] = self.function(*filled).numpy()[: len(token_ids[part])]
                progress.advance(len(token_ids[part]))
        return found.reshape(shape)


def token_nats(
    decoder: Decoder, token_ids: tf.Tensor, targets: tf.Tensor, training: bool, chunk_tokens: int = 0
) -> tf.Tensor:
    """The cross-entropy of each target, [rows, T] float32; differentiable when training.

    Args:
        decoder: not packed.
        token_ids, targets: [rows, T] int32, padded on the right.
        chunk_tokens: as `CausalLanguageModelingLoss`'s.
    """
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
        nats = head.per_token_nll(hidden, decoder.output_weights(), flat)
    else:
        nats = head.per_token(hidden, decoder.output_weights(), flat)[1]
    return tf.reshape(nats, tf.shape(targets))


class PreferenceLoss:
    """The sums of `preference_losses` over a batch of pairs; the step divides by the pairs.

    Args:
        objective: dpo, ipo, orpo or simpo.
        config: the settings.
        chunk_tokens: as `CausalLanguageModelingLoss`'s.

    Attributes:
        means: the further sums, each a mean a pair once it is divided: `reward_margin`, the chosen answer's implicit
            reward minus the rejected one's; `chosen_log_probability` and `rejected_log_probability`, a token; `kl`, an
            estimate of the divergence from the reference a token (Schulman's k3) on the pairs' own tokens.
    """

    unit = "pair"

    def __init__(self, objective: str, config: PreferenceConfig, chunk_tokens: int = 0):
        self.objective, self.config, self.chunk_tokens = objective, config, chunk_tokens
        self.means: tuple[str, ...] = (
            "accuracy",
            "reward_margin",
            "chosen_log_probability",
            "rejected_log_probability",
        )
        if objective in WITH_REFERENCE:
            self.means += ("kl",)

    def __call__(
        self,
        decoder: Any,
        batch: Mapping[str, tf.Tensor],
        training: bool,
        token_byte_lengths: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The sums of one batch of rows, chosen and rejected in turn; see `losses.CausalLanguageModelingLoss`."""
        weights = batch["weights"]
        nats = token_nats(decoder, batch["token_ids"], batch["targets"], training, self.chunk_tokens)
        counts = tf.maximum(tf.reduce_sum(weights, 1), 1.0)
        # (pairs, 2) each from here on.
        lengths = tf.reshape(
            counts if normalizes_length(self.objective, self.config) else tf.ones_like(counts), [-1, 2]
        )
        policy = -tf.reshape(tf.reduce_sum(nats * weights, 1), [-1, 2]) / lengths
        reference = None
        if self.objective in WITH_REFERENCE:
            reference = -tf.reshape(tf.reduce_sum(batch["reference_nats"] * weights, 1), [-1, 2]) / lengths
        losses, rewards = pair_losses(self.objective, self.config, policy, reference)
        pair_weights = tf.reshape(batch["example_weights"], [-1, 2])[:, 0]

        def total(by_pair: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(by_pair * pair_weights)

        by_token = policy * lengths / tf.reshape(counts, [-1, 2])
        right = tf.cast(rewards[:, 0] > rewards[:, 1], tf.float32)
        loss_sum = total(losses)
        sums = {
            "loss_sum": loss_sum,
            "nll_sum": loss_sum,
            "weight_sum": tf.reduce_sum(pair_weights),
            "accuracy": total(right),
            "reward_margin": total(rewards[:, 0] - rewards[:, 1]),
            "chosen_log_probability": total(by_token[:, 0]),
            "rejected_log_probability": total(by_token[:, 1]),
        }
        if reference is not None:
            change = nats - batch["reference_nats"]  # log of reference over policy
            by_row = tf.reduce_sum((tf.exp(change) - 1.0 - change) * weights, 1) / counts
            sums["kl"] = total(tf.reduce_mean(tf.reshape(by_row, [-1, 2]), 1))
        return sums
