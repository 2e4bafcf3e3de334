"""Can one small batch be learned by heart? The quickest proof that model, loss, step and learning rate fit together."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult, format_seconds, pluralize
from tfgpt.diagnosis.probe_model import ProbeModel

FACTORS = (0.1, 0.01, 10.0)
"""Of the learning rate: what is tried when the run's own does not learn, to be able to name one that does."""

LEAST_FALL = 0.1
"""A loss that fell by less than this share did not fall."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One attempt.

    Attributes:
        before, after: plain cross-entropy of the batch, nats per token, without dropout.
        steps: updates made.
        out_of_time: whether it ended for lack of time.
        seconds: how long the updates took, without the first, which traces and compiles.
    """

    before: float
    after: float
    steps: int
    out_of_time: bool
    seconds: float


def check_overfit(subject: ProbeModel, steps: int, seconds: float) -> CheckResult:
    """Trains on one small batch and looks whether its loss falls below what counting its tokens would reach.

    The bar is the entropy of the batch's own token frequencies: a model whose loss is lower has learned which token
    follows which, not only which are frequent. Uses the run's optimizer at its highest rate.

    Args:
        subject: its weights are changed.
        steps: at most so many updates.
        seconds: at most about so long, for each learning rate tried.
    """
    initial = Weights(subject)
    measure = subject.small_loss()
    bar = token_entropy(subject)
    rate = subject.recipe.optimizer.learning_rate
    trial = attempt(subject, measure, bar, steps, seconds)
    rows, length = subject.small["token_ids"].shape
    numbers = {**dataclasses.asdict(trial), "bar": bar, "learning_rate": rate, "rows": rows, "tokens_a_row": length}
    line = (
        f"{pluralize(rows, 'row')} of {length} tokens: loss {trial.before:.3f} → {trial.after:.3f} in "
        f"{pluralize(trial.steps, 'update')} ({format_seconds(trial.seconds)}); "
        f"counting its tokens would give {bar:.3f}"
    )

    def finding(status: str, words: str = "", *advice: str) -> CheckResult:
        return CheckResult("overfit one batch", status, line + words, advice, numbers)

    if learned(trial, bar):
        return finding(OK)
    if trial.out_of_time and trial.after < trial.before:
        return finding(
            WARN, ": falling, but there was no time for more", f"--max_probe_seconds={4 * seconds:g} gives it more time"
        )
    fell = math.isfinite(trial.after) and trial.after < (1 - LEAST_FALL) * trial.before
    for factor in FACTORS:
        initial.put_back()
        subject.trainer.learning_rate_scale.assign(factor)
        other = attempt(subject, measure, bar, steps, seconds)
        if learned(other, bar):
            initial.put_back()
            numbers["learning_rate_that_works"] = rate * factor
            words = (
                f"{rates(subject, factor)} learns it: {other.before:.3f} → {other.after:.3f} in {other.steps} updates"
            )
            slow = fell and factor > 1
            return finding(WARN if slow else FAIL, f": {'too slow' if slow else 'it is not learned'}", words)
    initial.put_back()
    longer = (f"or it only needs longer: --overfit_steps={4 * max(steps, 1)}",) if fell else ()
    return finding(
        FAIL,
        ": it is not learned",
        f"no learning rate from {rate * min(FACTORS):.2g} to {rate * max(FACTORS):.2g} learns it: look at the checks "
        "above, and at --max_grad_norm, --weight_decay and --epsilon",
        *longer,
    )


def learned(trial: Trial, bar: float) -> bool:
    """Whether the loss fell below the bar."""
    return math.isfinite(trial.after) and trial.after < bar


def rates(subject: ProbeModel, factor: float) -> str:
    """The flags of the learning rates, each times a factor."""
    optimizer = subject.recipe.optimizer
    flags = f"--learning_rate={optimizer.learning_rate * factor:.2g}"
    if optimizer.adam_learning_rate is not None:
        flags += f" --adam_learning_rate={optimizer.adam_learning_rate * factor:.2g}"
    return flags


def attempt(subject: ProbeModel, measure: Callable[[], float], bar: float, steps: int, seconds: float) -> Trial:
    """Updates until the loss is well below the bar, or steps or time are used up."""
    trainer, iterator = subject.trainer, subject.small_batches()
    before = measure()
    done, spent, out_of_time = 0, 0.0, False
    while done < steps and not out_of_time:
        once = spent / max(done - 1, 1)
        count = 1 if done < 2 else max(1, min(steps - done, 10, int(1.0 / max(once, 1e-9))))
        started = time.perf_counter()
        logs = trainer.train_steps(iterator, count)
        spent += time.perf_counter() - started if done else 0.0
        done += count
        loss = float(np.mean(logs["nll_per_token"]))
        if loss < 0.5 * bar or not math.isfinite(loss):
            break
        out_of_time = spent > seconds and done < steps
    return Trial(before, measure(), done, out_of_time, spent)


def token_entropy(subject: ProbeModel) -> float:
    """Entropy of the frequencies of the small batch's targets, weighted, in nats."""
    targets, weights = subject.small["targets"].ravel(), subject.small["weights"].ravel()
    counts = np.bincount(targets, weights)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


class Weights:
    """The decoder's weights and the optimizer's slots as they were, to begin again."""

    def __init__(self, subject: ProbeModel):
        self.variables = [*subject.decoder.trainable_variables, *subject.trainer.optimizer.variables]
        # Slots are all zero at first: only what is not has to be kept.
        self.values = [
            np.array(variable.numpy()) if tf.reduce_any(variable.value != tf.zeros((), variable.value.dtype)) else None
            for variable in self.variables
        ]

    def put_back(self) -> None:
        """Sets everything as it was."""
        for variable, value in zip(self.variables, self.values):
            variable.assign(tf.zeros(variable.shape, variable.dtype) if value is None else value)
