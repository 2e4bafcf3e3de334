"""Exact evaluation of a decoder on any devices, without an optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.training.distribution import replicas
from tfgpt.training.distribution.replicas import ModeFunctions

EVALUATION_SUMS = ("loss_sum", "nll_sum", "weight_sum", "correct_sum", "bytes_sum", "text_nll_sum")


class Evaluator:
    """Adds up a loss function's sums over datasets; each token counts by its weight.

    Create it inside the strategy's scope. Results do not depend on the number of replicas.

    Args:
        loss: from decoder and batch to sums of losses, see `tfgpt.training.losses.CausalLanguageModelingLoss`.
        token_byte_lengths: [V] integers, bytes of each token's text and 0 for special tokens, for bits per byte.
        batch_shape: (rows of the global batch, tokens of a row). Distributed iterators lose it, and TPUs need it.
        mode: "graph" (TensorFlow's kernels) or "xla".

    Example:

    >>> from tfgpt.model.config import DecoderConfig
    >>> from tfgpt.model.decoder import Decoder
    >>> from tfgpt.training.losses import CausalLanguageModelingLoss
    >>> shape = {"vocabulary_size": 8, "num_layers": 1, "hidden_dim": 8, "num_query_heads": 2}
    >>> decoder = Decoder(DecoderConfig(**shape, max_sequence_length=4))
    >>> ids = tf.zeros([1, 4], "int32")
    >>> batch = {"token_ids": ids, "targets": ids, "weights": tf.ones([1, 4])}
    >>> evaluator = Evaluator(decoder, CausalLanguageModelingLoss())
    >>> evaluator.evaluate(tf.data.Dataset.from_tensors(batch))["tokens"]
    4.0
    """

    def __init__(
        self,
        decoder: keras.Model,
        loss: Any,
        *,
        token_byte_lengths: np.ndarray | None = None,
        batch_shape: tuple[int, int] | None = None,
        mode: str = "graph",
    ):
        self.decoder, self.loss = decoder, loss
        self.token_byte_lengths, self.batch_shape = token_byte_lengths, batch_shape
        self.strategy = tf.distribute.get_strategy()
        self.sum_names = (*EVALUATION_SUMS, *loss.means)
        self.functions = ModeFunctions(mode)

    def evaluate(self, dataset: Any, batches: int | None = None) -> dict[str, float]:
        """Returns the metrics of a whole finite dataset.

        Args:
            dataset: a `tf.data.Dataset` of global batches; with several replicas, distributed by the strategy.
            batches: number of global batches; None: the dataset's cardinality.

        Returns:
            `loss` in nats per token (without smoothing and z-loss), `bits_per_byte` (only with
            `token_byte_lengths`), `accuracy` of the first guess, `tokens`, and the means of the loss function.
        """
        totals = self.sums(iter(dataset), int(dataset.cardinality()) if batches is None else batches)
        logs = evaluation_logs(totals, self.loss.means)
        if not logs["tokens"]:
            raise UserError("validation: there is no token to predict; give more text")
        return logs

    def sums(self, iterator: Any, count: int) -> np.ndarray:
        """Returns the sums named by `sum_names` over the next `count` global batches, float64."""
        return self.functions.loop(self.evaluation_loop)(iterator, tf.cast(count, tf.int64)).numpy()

    def evaluation_loop(self, iterator: Any, count: tf.Tensor) -> tf.Tensor:
        return replicas.run_steps(self.strategy, self.evaluation_step, iterator, count, self.sum_names)[0]

    def evaluation_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if replicas.on_tpu():
            batch = with_static_shape(batch, self.batch_shape)
        sums = self.functions.compiled(self.replica_sums, xla=self.functions.mode == "xla")(batch)
        return replicas.all_reduce_sum([], sums)[1]

    def replica_sums(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        lengths = None if self.token_byte_lengths is None else tf.constant(self.token_byte_lengths)
        sums = self.loss(self.decoder, batch, training=False, token_byte_lengths=lengths)
        return {name: sums.get(name, tf.zeros(())) for name in self.sum_names}


def evaluation_logs(totals: np.ndarray, means: Sequence[str] = ()) -> dict[str, float]:
    """Returns the metrics given the sums of `EVALUATION_SUMS` and the loss function's `means`."""
    sums = dict(zip((*EVALUATION_SUMS, *means), totals.tolist()))
    divisor = sums["weight_sum"] or float("nan")
    logs = {
        "loss": sums["nll_sum"] / divisor,
        "accuracy": sums["correct_sum"] / divisor,
        "tokens": sums["weight_sum"],
        **{name: sums[name] / divisor for name in means},
    }
    if sums["bytes_sum"]:
        logs["bits_per_byte"] = sums["text_nll_sum"] / (math.log(2.0) * sums["bytes_sum"])
    return logs


def with_static_shape(batch: Mapping[str, tf.Tensor], batch_shape: tuple[int, int] | None) -> dict[str, tf.Tensor]:
    """Sets the static shapes of a replica's part of a batch of `batch_shape`, which distributed iterators lose."""
    if batch_shape is None:
        return dict(batch)
    rows, length = batch_shape
    count = tf.distribute.get_strategy().num_replicas_in_sync
    if rows % count:
        raise UserError(f"--batch_size: {rows} rows cannot be shared by {count} replicas; use a multiple")
    shape = [rows // count, length]
    return {name: tf.ensure_shape(value, shape[: len(value.shape)]) for name, value in batch.items()}
