"""Pretraining batches from several sources in given shares: still a pure function of (shards, shape, seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.pipeline.batches import BatchReader, EpochShuffle, endless, numbers_in_block, rows_of_host, steps_of_block
from tfgpt.pipeline.mixture import Mixture
from tfgpt.pipeline.token_shards import TokenShards


class MixedRows(BatchReader):
    """Reads windows of several sources into one batch.

    Args:
        sources: the tokens of each.
        mixture: which row is of which source; its sizes are `windows` of them.
        sequence_length: T.
        document_masking: also `segment_ids` and `positions`.
        seed: of where epochs begin.
    """

    def __init__(
        self, sources: Sequence[TokenShards], mixture: Mixture, sequence_length: int, document_masking: bool, seed: int
    ):
        super().__init__(sources[0], sequence_length, document_masking, circular=True)
        self.mixture = mixture
        self.readers = [BatchReader(shards, sequence_length, document_masking, circular=True) for shards in sources]
        self.orders = [
            EpochShuffle(shards.num_tokens - 1, sequence_length, seed + n) for n, shards in enumerate(sources)
        ]

    def read(self, starts: np.ndarray) -> list[np.ndarray]:
        """The arrays named in `types` for rows with these running numbers [n], each [n, T]."""
        of_source: dict[int, list[tuple[int, int]]] = {}
        for place, number in enumerate(starts.tolist()):
            source, epoch, window = self.mixture.row(number)
            order = self.orders[source]
            start = (order.offset(epoch) + window * self.sequence_length) % order.targets
            of_source.setdefault(source, []).append((place, start))
        arrays: list[Any] = [None] * len(self.types)
        for source, rows in of_source.items():
            places, windows = np.array(rows, np.int64).T
            for number, found in enumerate(self.readers[source].read(windows)):
                if arrays[number] is None:
                    arrays[number] = np.empty((len(starts), self.sequence_length), found.dtype)
                arrays[number][places] = found
        return arrays


def windows(shards: TokenShards, sequence_length: int, name: str) -> int:
    """Rows of an epoch of one source.

    Raises:
        UserError: not even one.
    """
    found = (shards.num_tokens - 1) // sequence_length
    if not found:
        raise UserError(
            f"--train_text: {name} has {shards.num_tokens} tokens to learn from, fewer than one row of "
            f"--sequence_length={sequence_length} ({shards.origin}); leave it out, or --mixture"
        )
    return found


def mixed_training_batches(
    rows: MixedRows,
    *,
    batch_size: int,
    start_step: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """Endless batches from `start_step` on; arguments and elements as `batches.training_batches`'."""
    count = rows_of_host(batch_size, num_shards, shard_index, parts)
    steps = steps_of_block(count, rows.sequence_length)
    in_block = numbers_in_block(steps, batch_size, count, shard_index)

    def block(step: tf.Tensor) -> dict[str, tf.Tensor]:
        return rows.block(lambda number: number, [step * batch_size + in_block], steps * parts, count // parts)

    return endless(block, start_step, steps)
