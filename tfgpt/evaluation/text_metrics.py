"""Exact loss, bits per byte and accuracy of a model on texts, on any devices.

A text is split into rows of T tokens, without overlap. Every token counts once and is predicted from those before it in
its row, as in the validations of a run. Longer rows give a lower loss: compare results with equal T. Conversations are
packed whole, without attention between them, and only the assistant's tokens count.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.common.progress import Progress
from tfgpt.evaluation.config import EvaluateConfig
from tfgpt.evaluation.texts import EvaluationText, TextLoader
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.pipeline.batches import validation_batches, validation_steps
from tfgpt.training.config import StrategyConfig
from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.distribution.startup_barrier import format_workers
from tfgpt.training.distribution.strategy import check_batch, distributed, resolve
from tfgpt.training.evaluator import EVALUATION_SUMS, Evaluator, evaluation_logs
from tfgpt.training.losses import CausalLanguageModelingLoss

ROWS_PER_DEVICE = 8
# Calls per text; the progress bar advances and Ctrl-C is handled between calls.
MAX_CALLS = 100


@dataclasses.dataclass(frozen=True)
class TextMetrics:
    """The results on one text: loss in nats per token, bytes and bits without special tokens, first-guess accuracy."""

    name: str
    tokens: int
    bytes: int
    loss: float
    bits_per_byte: float | None
    accuracy: float
    perplexity: float


def evaluate(config: EvaluateConfig, devices: StrategyConfig, model: Path) -> None:
    """Evaluates a model directory and prints the results.

    On a cluster, every worker calls it and reads the model; the chief prints.
    """
    strategy = resolve(devices)
    hosts = HostGroup(strategy)
    with hosts.readable_worker_errors(lambda: "start the same command on every worker again"):
        loader = TextLoader(config, model)
        metrics = compute_metrics(config, model, loader, strategy, hosts)
        # Wait for all workers: one that exits early would be reported as lost.
        hosts.gather([0.0])
    if config.json:
        texts = [dataclasses.asdict(row) for row in metrics]
        content = {"model": config.model, "sequence_length": loader.length, "texts": texts}
        hosts.log(json.dumps(content, ensure_ascii=False))
    else:
        hosts.log("\n".join(table(metrics)))
        hosts.log(f"rows of {loader.length} tokens, {config.dtype}, devices: {strategy.num_replicas_in_sync}")


def compute_metrics(
    config: EvaluateConfig, model: Path, loader: TextLoader, strategy: tf.distribute.Strategy, hosts: HostGroup
) -> list[TextMetrics]:
    rows = config.batch_size or ROWS_PER_DEVICE * strategy.num_replicas_in_sync
    check_batch(rows, 1, strategy)
    # The chief prepares the texts; the others read them, or prepare them if they do not share its cache.
    texts = hosts.run_on_chief(loader.texts) or loader.texts()
    fingerprints = [text.fingerprint for text in texts]
    differing = np.flatnonzero(hosts.gather([fingerprints != hosts.broadcast(fingerprints)])[:, 0])
    if len(differing):
        raise UserError(f"--text: {format_workers(hosts.cluster, differing.tolist())} has other text than the chief")
    with strategy.scope():
        evaluator = Evaluator(
            load_decoder(model, packed=loader.packed, dtype=config.dtype),
            CausalLanguageModelingLoss(),
            token_byte_lengths=loader.tokenizer.byte_lengths(),
            batch_shape=(rows, loader.length),
        )
    sums = [(text.name, sum_text(evaluator, text, strategy, rows, silent=not hosts.is_chief)) for text in texts]
    if len(texts) > 1:
        sums.append(("all", np.sum([totals for _, totals in sums], axis=0)))
    metrics = []
    for name, totals in sums:
        logs = evaluation_logs(totals)
        if not logs["tokens"]:
            raise UserError(f"--text: {name} has no token to predict; give more text")
        tokens, num_bytes = int(logs["tokens"]), int(totals[EVALUATION_SUMS.index("bytes_sum")])
        loss, perplexity = logs["loss"], math.exp(min(logs["loss"], 700.0))
        bits = logs.get("bits_per_byte")
        metrics.append(TextMetrics(name, tokens, num_bytes, loss, bits, logs["accuracy"], perplexity))
    return metrics


def sum_text(
    evaluator: Evaluator, text: EvaluationText, strategy: tf.distribute.Strategy, rows: int, silent: bool
) -> np.ndarray:
    """Returns the sums of `EVALUATION_SUMS` over a text, float64 [6]."""
    batches = validation_steps(text.reader, rows)
    iterator = iter(distributed(strategy, functools.partial(validation_batches, text.reader, batch_size=rows)))
    sums, batches_per_call = np.zeros(len(EVALUATION_SUMS)), -(-batches // MAX_CALLS)
    with Progress(batches, "batch", f"evaluate {text.name}", silent=silent) as progress:
        for start in range(0, batches, batches_per_call):
            count = min(batches_per_call, batches - start)
            sums += evaluator.sums(iterator, count)
            progress.advance(count)
    return sums


def table(metrics: Sequence[TextMetrics]) -> list[str]:
    rows = [("text", "tokens", "bytes", "nats/token", "perplexity", "bits/byte", "accuracy")]
    for row in metrics:
        bits = "none" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"
        perplexity = f"{row.perplexity:,.2f}" if row.perplexity < 1e9 else f"{row.perplexity:.2e}"
        numbers = (f"{row.tokens:,}", f"{row.bytes:,}", f"{row.loss:.4f}", perplexity, bits, f"{row.accuracy:.2%}")
        rows.append((row.name, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [f"{name:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))]
        )
        for name, *cells in rows
    ]
