"""Checks of the untrained model: its loss, and a gradient for every variable."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfgpt.common.formatting import pluralize
from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult
from tfgpt.diagnosis.probe_model import Batch, ProbeModel

# The loss of untrained logits with standard deviation s is about ln(vocabulary) + s² / 2. All presets start below 1.04
# times ln(vocabulary), except for tied embeddings with zero-initialized outputs (docs/measurements.md).
LOSS_TOLERANCE = 0.1
LOSS_TOO_HIGH = 2.0
# Bytes of the logits that are computed; fewer rows are used for a large vocabulary.
LOGIT_BYTES = 128 << 20


def check_initial_loss(probe: ProbeModel) -> CheckResult:
    """Checks that the loss before any update is ln(vocabulary), and that it is the cross-entropy of the logits."""
    vocabulary_size = probe.decoder_config.vocabulary_size
    expected = math.log(vocabulary_size)
    tokens = max(64, min(LOGIT_BYTES // (4 * vocabulary_size), probe.forward_tokens // 2))
    length = min(probe.batch["token_ids"].shape[1], tokens)
    batch = {name: array[: tokens // length, :length] for name, array in probe.batch.items()}
    if not batch["weights"].sum():
        batch = probe.small
    loss = probe.loss(batch)
    loss_from_logits, deviation, input_logit = logit_statistics(probe, batch)
    numbers = {"loss": loss, "loss_from_logits": loss_from_logits, "ln_vocabulary": expected}
    numbers |= {"logit_standard_deviation": deviation, "own_logit": input_logit, "tolerance": LOSS_TOLERANCE * expected}
    too_high = FAIL if loss > LOSS_TOO_HIGH * expected else WARN
    start = smaller_initialization(probe, deviation, input_logit)
    if not math.isfinite(loss):
        status, words, advice = FAIL, ": not finite", start
    elif abs(loss - loss_from_logits) > 0.02 * max(loss_from_logits, 1.0):
        status, words = FAIL, f"; from the logits it should be {loss_from_logits:.3f}"
        advice = "the step's loss is not the cross-entropy of logits and targets: look at tfgpt/training/losses.py"
    elif probe.config.run.init_from is not None and loss < expected:
        status, words, advice = OK, "; the model to start from knows this kind of text", ""
    elif probe.config.run.init_from is not None:
        status, words = too_high, "; the model to start from knows nothing of this text"
        advice = "its tokenizer or its language is another: leave --tokenizer out, or start without --init_from"
    elif loss < (1 - LOSS_TOLERANCE) * expected:
        status, words = FAIL, ": too low"
        advice = "an untrained model cannot predict the text: the targets are wrong, or the answer is in the input"
    elif loss <= (1 + LOSS_TOLERANCE) * expected:
        status, words, advice = OK, f" (±{LOSS_TOLERANCE:.0%})", ""
    else:
        status, advice = too_high, start
        words = f": the standard deviation of the logits is {deviation:.2g}"
        if probe.decoder_config.tie_embeddings:
            words += f", and the tied head gives each input token the logit {input_logit:.2g}"
        words += "; far worse than a uniform guess" if status == FAIL else "; the first updates only undo this"
    line = f"{loss:.3f} nats, ln({vocabulary_size:,}) = {expected:.3f}{words}"
    return CheckResult("loss at step 0", status, line, (advice,) if advice else (), numbers)


def logit_statistics(probe: ProbeModel, batch: Batch) -> tuple[float, float, float]:
    """Returns the mean cross-entropy, the standard deviation of the logits and the mean logit of the input token."""
    logits = probe.traced(lambda inputs: probe.decoder(inputs, training=False))(probe.decoder_inputs(batch))
    logits = logits.astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    normalizer = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    targets, inputs = (batch[name][..., None].astype(np.int64) for name in ("targets", "token_ids"))
    losses = normalizer - np.take_along_axis(logits, targets, axis=-1)[..., 0]
    loss = (losses * batch["weights"]).sum() / batch["weights"].sum()
    input_logit = np.take_along_axis(logits, inputs, axis=-1).mean()
    return float(loss), float(logits.std(axis=-1).mean()), float(input_logit)


def smaller_initialization(probe: ProbeModel, deviation: float, input_logit: float) -> str:
    config = probe.decoder_config
    flag = "embedding_initializer_range" if config.tie_embeddings else "head_initializer_range"
    current = getattr(config, flag)
    factors = [0.5 / deviation] if deviation > 0.5 else []
    if config.tie_embeddings and input_logit > 0:
        factors.append(0.5 * math.log(config.vocabulary_size) / input_logit)
    value = current * min(factors) if factors and math.isfinite(min(factors)) else 0.02
    advice = f"--{flag}={min(value, current):.2g} begins with smaller logits"
    return advice + (", or --tie_embeddings=false" if config.tie_embeddings and input_logit > deviation else "")


def check_gradients(probe: ProbeModel) -> CheckResult:
    """Checks that every variable has a finite and nonzero gradient, now or after one or two updates.

    Zero-initialized projections block the gradients of earlier layers until their first update. A key bias has no
    gradient with learned positions and without query-key norm: softmax cancels it.
    """
    config, trainer = probe.decoder_config, probe.trainer
    variables = probe.decoder.trainable_variables
    frozen = [variable.path for variable in probe.decoder.weights if not variable.trainable]

    def norms_in_graph(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        gradients, sums = trainer.gradients(batch)
        return tf.stack([tf.norm(gradient) for gradient in gradients]) / sums["weight_sum"]

    gradient_norms, iterator = probe.traced(norms_in_graph), probe.repeat(probe.small)
    first = norms = gradient_norms(probe.small)
    cancels = config.position_embedding == "learned" and not config.query_key_norm
    cancelled = np.array([cancels and variable.path.endswith("attention/key/bias") for variable in variables])
    reached, updates = (norms > 0) | cancelled, 0
    while updates < 2 and np.isfinite(norms).all() and not reached.all():
        trainer.train_steps(iterator, 1)
        updates += 1
        norms = gradient_norms(probe.small)
        reached |= norms > 0
    missing = [variable.path for variable, seen in zip(variables, reached, strict=True) if not seen]
    broken = [variable.path for variable, norm in zip(variables, first, strict=True) if not np.isfinite(norm)]
    global_norm = float(np.sqrt((first.astype(np.float64) ** 2).sum()))
    numbers: dict[str, object]
    numbers = {"variables": len(variables), "updates": updates, "global_norm": global_norm}
    numbers |= {"without_gradient": missing, "not_finite": broken, "frozen": frozen}

    def result(status: str, line: str, *advice: str) -> CheckResult:
        return CheckResult("gradients", status, f"{len(variables)} variables{line}", advice, numbers)

    if broken:
        advice = "the forward or backward pass overflows: --initializer_range=0.02, or --dtype=float32"
        return result(FAIL, f": not finite for {format_paths(broken)}", advice)
    if frozen and not probe.config.lora.lora_rank:
        advice = "every weight of the decoder should be trainable"
        return result(FAIL, f" and {len(frozen)} that are frozen: {format_paths(frozen)}", advice)
    if missing:
        advice = "the loss does not depend on these variables: look at their layers"
        return result(FAIL, f": none for {format_paths(missing)}", advice)
    line = f", each with a finite, nonzero gradient (global norm {global_norm:.3g}"
    if updates:
        line += f"; some only after {pluralize(updates, 'update')}, because of zero-initialized projections"
    line += ")"
    if frozen:
        line += f"; {len(frozen)} more are frozen below the adapters"
    if cancelled.any():
        line += f"; not required of {pluralize(int(cancelled.sum()), 'key bias')}, which softmax cancels"
    positions, length = config.max_sequence_length, probe.config.batch.sequence_length
    if config.position_embedding == "learned" and positions > length and probe.config.run.init_from is None:
        advice = f"--max_sequence_length={length}, or --position_embedding=rope, which has no position embeddings"
        return result(WARN, f"{line}; but positions {length} to {positions - 1} never occur and stay untrained", advice)
    return result(OK, line)


def format_paths(paths: list[str], limit: int = 3) -> str:
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + more
