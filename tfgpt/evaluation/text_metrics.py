"""Exact loss, bits per byte and accuracy of a model on whole texts, on any devices.

The figures are those of a run's own validations (`Evaluator`): the text is cut into rows of T tokens, in order
and without overlap, and every token is counted once, predicted from what stands before it in its row. So the first
tokens of a row have little to go on, and a longer row gives a lower loss: compare figures of equal T. Conversations
(--objective=chat) stand in rows whole, each without sight of the others, and what the assistant says counts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.progress import Progress
from tfgpt.evaluation.config import EvaluateConfig
from tfgpt.evaluation.texts import EvaluationText, Reader, provenance
from tfgpt.model.checkpoints.huggingface import load_config, load_decoder
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.training.config import StrategyConfig
from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.distribution.startup_barrier import format_workers
from tfgpt.training.distribution.strategy import check_batch, distributed, resolve
from tfgpt.training.evaluator import EVALUATION_SUMS, Evaluator, evaluation_logs
from tfgpt.training.losses import CausalLanguageModelingLoss

ROWS_OF_A_DEVICE = 8
# The context of a model that was not trained here is cut to this: attention over longer rows needs gigabytes.
LONGEST_ROW = 1024
# A text is measured in at most so many calls, between which the progress bar moves and Ctrl-C is heard.
CALLS = 100


@dataclasses.dataclass(frozen=True)
class TextMetrics:
    """What came of one text.

    Attributes:
        name: the text, or "all".
        tokens: predicted tokens.
        bytes: of the text that they stand for; special tokens stand for none.
        loss: nats per token.
        bits_per_byte: special tokens count neither bits nor bytes; None where there is no byte.
        accuracy: share of the tokens that were the model's first guess.
    """

    name: str
    tokens: int
    bytes: int
    loss: float
    bits_per_byte: float | None
    accuracy: float

    @classmethod
    def from_sums(cls, name: str, sums: np.ndarray) -> TextMetrics:
        """From the sums of `EVALUATION_SUMS`, float64 [6].

        Raises:
            UserError: the text has no token to predict.
        """
        logs = evaluation_logs(sums)
        if not logs["tokens"]:
            raise UserError(f"--text: {name} has no token to predict; give more text")
        num_bytes = int(sums[EVALUATION_SUMS.index("bytes_sum")])
        return cls(name, int(logs["tokens"]), num_bytes, logs["loss"], logs.get("bits_per_byte"), logs["accuracy"])

    @property
    def perplexity(self) -> float:
        """The loss as a number of equally likely tokens."""
        return math.exp(min(self.loss, 700.0))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "perplexity": self.perplexity}


def evaluate(config: EvaluateConfig, devices: StrategyConfig, model: Path) -> None:
    """Measures and prints; on a cluster every worker calls it, and the chief prints.

    Args:
        config: which text, and how it is read.
        devices: which devices share the rows.
        model: the model directory; on a cluster every worker reads it.

    Raises:
        UserError: the model, a text or a flag is at fault.
        WorkerLost: a worker of the cluster is gone.
    """
    strategy = resolve(devices)
    hosts = HostGroup(strategy)
    with hosts.readable_worker_errors(lambda: "start the same command on every worker again"):
        length, figures = evaluate_together(config, model, strategy, hosts)
        # Nobody leaves before all have their figures: it would look like the loss of a worker.
        hosts.gather([0.0])
    if config.json:
        content = {"model": config.model, "sequence_length": length, "texts": [row.to_dict() for row in figures]}
        hosts.log(json.dumps(content, ensure_ascii=False))
    else:
        hosts.log("\n".join(table(figures)))
        hosts.log(f"rows of {length} tokens, {config.dtype}, devices: {strategy.num_replicas_in_sync}")


def evaluate_together(
    config: EvaluateConfig, model: Path, strategy: tf.distribute.Strategy, hosts: HostGroup
) -> tuple[int, list[TextMetrics]]:
    """The tokens of a row; the figures of each text, and of all where there are several."""
    tokenizer = load_tokenizer(model)
    length = row_length(config, model)
    rows = config.batch_size or ROWS_OF_A_DEVICE * strategy.num_replicas_in_sync
    check_batch(rows, 1, strategy)
    # The chief makes what is missing; the others find it, or make it where they cannot see it.
    reader = Reader(config, model, tokenizer, length)
    texts = hosts.run_on_chief(reader.texts) or reader.texts()
    check_same_text(texts, hosts)
    with strategy.scope():
        evaluator = Evaluator(
            load_decoder(model, packed=reader.packed, dtype=config.dtype),
            CausalLanguageModelingLoss(),
            token_byte_lengths=tokenizer.byte_lengths(),
            batch_shape=(rows, length),
        )
    figures, total = [], np.zeros(len(EVALUATION_SUMS))
    for text in texts:
        sums = summed(evaluator, text, strategy, rows, silent=not hosts.is_chief)
        figures.append(TextMetrics.from_sums(text.name, sums))
        total += sums
    return length, [*figures, TextMetrics.from_sums("all", total)] if len(figures) > 1 else figures


def row_length(config: EvaluateConfig, model: Path) -> int:
    """The tokens of a row.

    Raises:
        SettingError: the model has no positions for so many.
    """
    positions = load_config(model).max_sequence_length
    trained = provenance(model).get("flags", {}).get("sequence_length")
    length = config.sequence_length or trained or min(positions, LONGEST_ROW)
    if length > positions:
        raise SettingError("sequence_length", f"{length} is longer than the model's {positions} positions")
    return length


def check_same_text(texts: Sequence[EvaluationText], hosts: HostGroup) -> None:
    """Refuses a cluster whose workers see different text.

    Raises:
        UserError: naming the workers that see other text than the chief.
    """
    mine = [text.fingerprint for text in texts]
    differing = np.flatnonzero(hosts.gather([mine != hosts.broadcast(mine)])[:, 0])
    if len(differing):
        raise UserError(f"--text: {format_workers(hosts.cluster, differing.tolist())} has other text than the chief")


def summed(
    evaluator: Evaluator, text: EvaluationText, strategy: tf.distribute.Strategy, rows: int, silent: bool
) -> np.ndarray:
    """The sums of `EVALUATION_SUMS` over a text, float64 [6]."""
    batches = text.steps(rows)
    feed = iter(distributed(strategy, functools.partial(text.batches, batch_size=rows)))
    sums, together = np.zeros(len(EVALUATION_SUMS)), -(-batches // CALLS)
    with Progress(batches, "batch", f"evaluate {text.name}", silent=silent) as progress:
        for start in range(0, batches, together):
            count = min(together, batches - start)
            sums += evaluator.sums(feed, count)
            progress.advance(count)
    return sums


def table(figures: Sequence[TextMetrics]) -> list[str]:
    """The lines of a table, one for each text."""
    heading = ("text", "tokens", "bytes", "nats/token", "perplexity", "bits/byte", "accuracy")
    rows = [heading]
    for row in figures:
        bits = "none" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"
        perplexity = f"{row.perplexity:,.2f}" if row.perplexity < 1e9 else f"{row.perplexity:.2e}"
        numbers = (f"{row.tokens:,}", f"{row.bytes:,}", f"{row.loss:.4f}", perplexity, bits, f"{row.accuracy:.2%}")
        rows.append((row.name, *numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    return [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
        for row in rows
    ]
