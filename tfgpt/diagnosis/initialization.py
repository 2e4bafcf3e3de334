"""Can it learn: the loss before any update, and a gradient for every variable.

The loss of untrained logits with standard deviation s is about ln(vocabulary) + s² / 2, and s is the norm of the
final hidden state, √hidden_dim, times the spread of the head's initial rows. Measured over ln(vocabulary)
(2026-11-22, random tokens): tiny 1.004, mini 1.010, small 1.016, base 1.010, gpt2 1.016, gpt2_medium 1.027,
llama_135m 1.012, llama_360m 1.014; with a vocabulary of 260 bytes at most 1.035; a head of its own that starts at
(almost) zero 1.000, whatever the embeddings. A tied head besides gives every token its own logit, up to hidden_dim
times that spread where the blocks' outputs start at zero: then 1.007 for tiny, 1.035 for mini, 1.07 for gpt2, 1.48
for small, and 23 for tiny with embeddings of spread 1. So: up to 1.1 is in order, above is worth a word, above 2 an
error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult, pluralize
from tfgpt.diagnosis.probe_model import Batch, ProbeModel

LOSS_TOLERANCE = 0.1
LOSS_TOO_HIGH = 2.0
LOGIT_BYTES = 128 << 20
"""Logits that are computed at once for the check; fewer rows where a vocabulary is large."""


def check_initial_loss(subject: ProbeModel) -> CheckResult:
    """The loss before any update against ln(vocabulary), what a model that knows nothing has.

    Also computes it again from the logits, in float64, apart from the training step's own arithmetic.
    """
    vocabulary_size = subject.config.vocabulary_size
    expected = math.log(vocabulary_size)
    tokens = max(64, min(LOGIT_BYTES // (4 * vocabulary_size), subject.forward_tokens // 2))
    rows, length = subject.batch["token_ids"].shape
    length = min(length, tokens)
    rows = max(1, min(rows, tokens // length))
    batch = {name: array[:rows, :length] for name, array in subject.batch.items()}
    if not batch["weights"].sum():
        batch = subject.small
    sums = subject.run(lambda inputs: subject.trainer.loss_function(subject.decoder, inputs, training=False), batch)
    loss = float(sums["nll_sum"]) / float(sums["weight_sum"])
    logits = Logits.of(subject, batch)
    numbers = {
        "loss": loss,
        "loss_from_logits": logits.loss,
        "ln_vocabulary": expected,
        "tolerance": LOSS_TOLERANCE * expected,
        "logit_standard_deviation": logits.spread,
        "own_logit": logits.own,
    }
    line = f"{loss:.3f} nats, ln({vocabulary_size:,}) = {expected:.3f}"

    def finding(status: str, words: str = "", *advice: str) -> CheckResult:
        return CheckResult("loss at step 0", status, line + words, advice, numbers)

    if not math.isfinite(loss):
        return finding(FAIL, ": not finite", smaller_initialization(subject, logits))
    if abs(loss - logits.loss) > 0.02 * max(logits.loss, 1.0):
        return finding(
            FAIL,
            f"; from the logits it should be {logits.loss:.3f}",
            "the step's loss is not the cross-entropy of logits and targets: look at tfgpt/training/losses.py",
        )
    if subject.recipe.run.init_from is not None:
        if loss < expected:
            return finding(OK, "; the model to start from knows something")
        return finding(
            FAIL if loss > LOSS_TOO_HIGH * expected else WARN,
            "; the model to start from knows nothing of this text",
            "its tokenizer or its language is another: leave --tokenizer out, or start without --init_from",
        )
    if loss < (1 - LOSS_TOLERANCE) * expected:
        return finding(
            FAIL,
            ": too low",
            "a model that was never trained cannot know this: the targets are wrong, or the answer is in the input",
        )
    if loss <= (1 + LOSS_TOLERANCE) * expected:
        return finding(OK, f" (±{LOSS_TOLERANCE:.0%})")
    words = f": the logits spread by {logits.spread:.2g}"
    if subject.config.tie_embeddings:
        words += f", and the tied head gives each token itself {logits.own:.2g}"
    status = FAIL if loss > LOSS_TOO_HIGH * expected else WARN
    words += "; far worse than knowing nothing" if status == FAIL else "; the first updates only undo this"
    return finding(status, words, smaller_initialization(subject, logits))


@dataclasses.dataclass(frozen=True)
class Logits:
    """What the decoder's logits of a batch say.

    Attributes:
        loss: weighted mean cross-entropy, computed in float64.
        spread: their standard deviation over the vocabulary.
        own: the mean logit of the input token itself.
    """

    loss: float
    spread: float
    own: float

    @classmethod
    def of(cls, subject: ProbeModel, batch: Batch) -> Logits:
        """Runs the decoder."""
        names = ("token_ids", "positions", "segment_ids") if subject.decoder.packed else ("token_ids",)
        logits = subject.run(
            lambda given: subject.decoder(given, training=False), {name: batch[name] for name in names}
        ).astype(np.float64)
        top = logits.max(axis=-1, keepdims=True)
        normalizer = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
        targets, inputs = (batch[name][..., None].astype(np.int64) for name in ("targets", "token_ids"))
        nats = normalizer - np.take_along_axis(logits, targets, axis=-1)[..., 0]
        loss = (nats * batch["weights"]).sum() / batch["weights"].sum()
        own = np.take_along_axis(logits, inputs, axis=-1).mean()
        return cls(float(loss), float(logits.std(axis=-1).mean()), float(own))


def smaller_initialization(subject: ProbeModel, logits: Logits) -> str:
    """Which initial spread to lower to what, so that the logits begin small."""
    config = subject.config
    flag = "embedding_initializer_range" if config.tie_embeddings else "head_initializer_range"
    now = getattr(config, flag)
    factors = [0.5 / logits.spread] if logits.spread > 0.5 else []
    if config.tie_embeddings and logits.own > 0:
        factors.append(0.5 * math.log(config.vocabulary_size) / logits.own)
    value = now * min(factors) if factors and math.isfinite(min(factors)) else 0.02
    better = f"--{flag}={min(value, now):.2g} begins with smaller logits"
    return better + (", or --tie_embeddings=false" if config.tie_embeddings and logits.own > logits.spread else "")


def check_gradients(subject: ProbeModel) -> CheckResult:
    """Every variable gets a finite gradient that is not zero, now or after one or two updates.

    Projections that start at zero rightly block the gradients behind them until they have moved. A key's bias rightly
    never gets one where positions are learned: it adds the same to all scores of a query, and softmax takes that away
    again. (With RoPE it is turned with the position, and with query-key norm it is not added last: then it must.)
    """
    decoder, trainer = subject.decoder, subject.trainer
    frozen = [variable.path for variable in decoder.weights if not variable.trainable]
    variables = decoder.trainable_variables

    def norms_in_graph(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        gradients, sums = trainer.gradients(batch)
        return tf.stack([tf.norm(gradient) for gradient in gradients]) / sums["weight_sum"]

    measure = subject.traced(norms_in_graph)
    iterator = subject.small_batches()
    norms = measure(subject.small)
    without_gradient = np.array([is_cancelled_key_bias(variable.path, subject) for variable in variables])
    reached, first = (norms > 0) | without_gradient, norms
    updates = 0
    while updates < 2 and np.isfinite(norms).all() and not reached.all():
        trainer.train_steps(iterator, 1)
        updates += 1
        norms = measure(subject.small)
        reached |= norms > 0
    missing = [variable.path for variable, seen in zip(variables, reached) if not seen]
    broken = [variable.path for variable, norm in zip(variables, first) if not np.isfinite(norm)]
    numbers = {
        "variables": len(variables),
        "updates": updates,
        "global_norm": float(np.sqrt((first.astype(np.float64) ** 2).sum())),
        "without_gradient": missing,
        "not_finite": broken,
        "frozen": frozen,
    }
    line = f"{len(variables)} variables"
    if broken:
        advice = ("the forward or backward pass overflows: --initializer_range=0.02, or --dtype=float32",)
        return CheckResult("gradients", FAIL, f"{line}: not finite for {named(broken)}", advice, numbers)
    if frozen and not subject.recipe.lora.lora_rank:
        advice = ("every weight of the decoder should be trainable",)
        return CheckResult(
            "gradients", FAIL, f"{line} and {len(frozen)} that are frozen: {named(frozen)}", advice, numbers
        )
    if missing:
        advice = ("nothing that these compute reaches the loss: look at the layers they belong to",)
        return CheckResult("gradients", FAIL, f"{line}: none for {named(missing)}", advice, numbers)
    line += f", each with a finite gradient that is not zero (global norm {numbers['global_norm']:.3g}"
    if updates:
        line += f"; some only after {pluralize(updates, 'update')}, as zero-initialized projections make it"
    line += ")"
    if frozen:
        line += f"; {len(frozen)} more are frozen below the adapters"
    if without_gradient.any():
        line += f"; none is asked of {pluralize(int(without_gradient.sum()), 'key bias')}, which softmax cancels"
    rows = subject.config.max_sequence_length
    length = subject.recipe.batch.sequence_length
    if subject.config.position_embedding == "learned" and rows > length and subject.recipe.run.init_from is None:
        advice = (f"--max_sequence_length={length}, or --position_embedding=rope, which needs no such rows",)
        return CheckResult(
            "gradients",
            WARN,
            f"{line}; but positions {length} to {rows - 1} never occur and stay untrained",
            advice,
            numbers,
        )
    return CheckResult("gradients", OK, line, (), numbers)


def is_cancelled_key_bias(path: str, subject: ProbeModel) -> bool:
    """Whether a variable is a key's bias whose gradient is zero in exact arithmetic."""
    config = subject.config
    return path.endswith("attention/key/bias") and config.position_embedding == "learned" and not config.query_key_norm


def named(paths: list[str], most: int = 3) -> str:
    """The first few paths."""
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")
