"""Overfitting check: model, loss, step and learning rate together must learn one small batch."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf

from tfgpt.common.formatting import format_seconds, pluralize
from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult
from tfgpt.diagnosis.probe_model import ProbeModel

# Factors on the learning rate that are tried if the run's own does not learn.
FACTORS = (0.1, 0.01, 10.0)
# Share of the loss by which it must fall to count as falling.
MIN_FALL = 0.1


def check_overfit(probe: ProbeModel, steps: int, seconds: float) -> CheckResult:
    """Trains on one small batch with the run's optimizer at its highest rate, changing the weights.

    The loss must fall below the entropy of the batch's token frequencies. Then the model has learned which token
    follows which, not only which are frequent.
    At most `steps` updates and about `seconds` are spent on each learning rate that is tried.
    """
    variables = [*probe.decoder.trainable_variables, *probe.trainer.optimizer.variables]
    # Optimizer slots start as zeros, which need no copy.
    initial = [np.array(variable.numpy()) if tf.reduce_any(variable.value != 0) else None for variable in variables]
    counts = np.bincount(probe.small["targets"].ravel(), probe.small["weights"].ravel())
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    optimizer = probe.config.optimizer
    rows, length = probe.small["token_ids"].shape
    attempt = train_on_small_batch(probe, entropy, steps, seconds)
    numbers = dataclasses.asdict(attempt) | {"bar": entropy, "learning_rate": optimizer.learning_rate}
    numbers |= {"rows": rows, "tokens_a_row": length}
    line = (
        f"{pluralize(rows, 'row')} of {length} tokens: loss {attempt.before:.3f} → {attempt.after:.3f} in "
        f"{pluralize(attempt.steps, 'update')} ({format_seconds(attempt.seconds)}); the entropy of its token "
        f"frequencies is {entropy:.3f}"
    )

    def result(status: str, words: str, *advice: str) -> CheckResult:
        return CheckResult("overfit one batch", status, line + words, advice, numbers)

    if attempt.after < entropy:
        return result(OK, "")
    if attempt.out_of_time and attempt.after < attempt.before:
        advice = f"--max_probe_seconds={4 * seconds:g} gives it more time"
        return result(WARN, ": falling, but the time was too short", advice)
    fell = attempt.after < (1 - MIN_FALL) * attempt.before
    for factor in FACTORS:
        restore(variables, initial)
        probe.trainer.learning_rate_scale.assign(factor)
        other = train_on_small_batch(probe, entropy, steps, seconds)
        if other.after < entropy:
            break
    restore(variables, initial)
    if other.after < entropy:
        numbers["learning_rate_that_works"] = optimizer.learning_rate * factor
        flags = f"--learning_rate={optimizer.learning_rate * factor:.2g}"
        if optimizer.adam_learning_rate is not None:
            flags += f" --adam_learning_rate={optimizer.adam_learning_rate * factor:.2g}"
        advice = f"{flags} learns it: {other.before:.3f} → {other.after:.3f} in {other.steps} updates"
        slow = fell and factor > 1
        return result(WARN if slow else FAIL, ": too slow" if slow else ": it is not learned", advice)
    lowest, highest = (optimizer.learning_rate * extreme(FACTORS) for extreme in (min, max))
    advice = (
        f"no learning rate from {lowest:.2g} to {highest:.2g} learns it: look at the checks above, and at "
        "--max_grad_norm, --weight_decay and --epsilon"
    )
    longer = [f"or it only needs longer: --overfit_steps={4 * max(steps, 1)}"] if fell else []
    return result(FAIL, ": it is not learned", advice, *longer)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Losses before and after training on the small batch, in nats per token, and the time without the first update."""

    before: float
    after: float
    steps: int
    out_of_time: bool
    seconds: float


def train_on_small_batch(probe: ProbeModel, entropy: float, steps: int, seconds: float) -> Attempt:
    # Stops at half the entropy, and when the loss is not finite or steps or time are used up.
    iterator = probe.repeat(probe.small)
    before = probe.loss(probe.small)
    done, spent, out_of_time = 0, 0.0, False
    while done < steps and not out_of_time:
        seconds_per_update = spent / max(done - 1, 1)
        count = 1 if done < 2 else max(1, min(steps - done, 10, int(1.0 / max(seconds_per_update, 1e-9))))
        started = time.perf_counter()
        logs = probe.trainer.train_steps(iterator, count)
        spent += time.perf_counter() - started if done else 0.0
        done += count
        if logs["nll_per_token"] < 0.5 * entropy or not math.isfinite(logs["nll_per_token"]):
            break
        out_of_time = spent > seconds and done < steps
    return Attempt(before, probe.loss(probe.small), done, out_of_time, spent)


def restore(variables: list, values: list) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(tf.zeros(variable.shape, variable.dtype) if value is None else value)
