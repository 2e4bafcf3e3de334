"""Batches as `tf.data` datasets: the batch of a step is a function of (data, shape, seed, step).

Row r of step s has the number `s * batch_size + r`, and a `BatchReader` reads rows by their numbers. No state passes
from step to step: starting at step 1,000,000 costs what starting at step 0 costs, and an epoch may end within a batch.
One `tf.numpy_function` reads a block of steps (up to 260,000 tokens), which `tf.data` divides into steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import SettingError, UserError
from tfgpt.pipeline.shuffling import EpochShuffle, Mixture, mixture_weights
from tfgpt.pipeline.token_shards import TokenShards

# A block has at most so many tokens and rows, but at least one step.
BLOCK_TOKENS = 1 << 18
BLOCK_ROWS = 1 << 10
LAST_STEP = 1 << 62


class BatchReader:
    """Reads rows by their numbers. Subclasses set the attributes and implement `read`.

    Attributes:
        types: name → dtype of each array that `read` returns.
        shapes: name → shape of one row of each array.
        num_rows: rows of one pass, for `validation_batches`.
        rows_per_number: rows of a batch that belong to one number.
        adds_weights: `read` leaves "weights" out, which are all 1.

    Example:

    >>> class Numbers(BatchReader):
    ...     num_rows, types, shapes = 3, {"number": np.dtype(np.int64)}, {"number": ()}
    ...     def read(self, numbers):
    ...         return {"number": numbers}
    >>> [batch["number"].numpy().tolist() for batch in training_batches(Numbers(), batch_size=2, start_step=5).take(2)]
    [[10, 11], [12, 13]]
    """

    types: dict[str, np.dtype]
    shapes: dict[str, tuple[int, ...]]
    num_rows: int
    rows_per_number = 1
    adds_weights = False

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns arrays [n * rows_per_number, …] for row numbers int64 [n], ascending.

        Numbers from `num_rows` on are further epochs in training, and rows of weight 0 in validation.
        """
        raise NotImplementedError

    def read_rows(self, epochs: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of rows of epochs, both int64 [n], for `MixtureReader`."""
        raise NotImplementedError


def training_batches(
    reader: BatchReader,
    *,
    batch_size: int,
    start_step: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """Returns endless batches from `start_step` on.

    Args:
        batch_size: B, row numbers of the global batch.
        num_shards: hosts that share a global batch; must divide `batch_size`.
        shard_index: the number of this host, which gets the contiguous part of that number.
        parts: devices of this host: a step gives so many elements, one after the other; must divide a host's rows.

    Returns:
        A `tf.data.Dataset` of dictionaries with R = B / num_shards / parts rows: for text `token_ids` and `targets`
        int32 [R, T], `weights` float32 [R, T], and, if the reader makes them, `segment_ids` and `positions`
        int32 [R, T].
    """
    return dataset_of(reader, batch_size, range(start_step, LAST_STEP), num_shards, shard_index, parts)


def validation_batches(
    reader: BatchReader, *, batch_size: int, num_shards: int = 1, shard_index: int = 0, parts: int = 1
) -> tf.data.Dataset:
    """Returns all rows once, in order; rows of weight 0 fill the last batch. The cardinality is known.

    Arguments and elements are those of `training_batches`. Every host gets equally many batches.
    """
    steps = range(validation_steps(reader, batch_size))
    dataset = dataset_of(reader, batch_size, steps, num_shards, shard_index, parts).take(len(steps) * parts)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(steps) * parts))


def validation_steps(reader: BatchReader, batch_size: int) -> int:
    """Returns the number of global batches of `validation_batches`."""
    return -(-reader.num_rows // batch_size)


def dataset_of(
    reader: BatchReader, batch_size: int, steps: range, num_shards: int, shard_index: int, parts: int
) -> tf.data.Dataset:
    if batch_size % num_shards:
        raise SettingError("batch_size", f"{batch_size} rows do not divide among {num_shards} hosts")
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index {shard_index} is not one of {num_shards} shards")
    rows = batch_size // num_shards
    if rows % parts:
        raise SettingError("batch_size", f"{rows} rows of a host do not divide by {parts} devices")
    row_tokens = max(map(np.prod, reader.shapes.values()), default=1) * reader.rows_per_number
    block = max(1, min(BLOCK_ROWS // rows, int(BLOCK_TOKENS // (rows * row_tokens)), len(steps)))
    in_block = (np.arange(block)[:, None] * batch_size + shard_index * rows + np.arange(rows)).reshape(-1)
    shape = (block * parts, rows // parts * reader.rows_per_number)

    def read(step: np.ndarray) -> list[np.ndarray]:
        arrays = reader.read(step * batch_size + in_block)
        return [arrays[name] for name in reader.types]

    def read_block(step: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(read, [step], list(reader.types.values()), stateful=False)
        tensors = {name: tf.reshape(array, shape + reader.shapes[name]) for name, array in zip(reader.types, arrays)}
        if reader.adds_weights:
            # A constant: tf.ones would be filled again for every block, a quarter of the whole cost.
            tensors["weights"] = tf.constant(np.ones(shape + reader.shapes["targets"], np.float32))
        return tensors

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    # Hosts already have their rows.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = 1
    # The next block is read during the steps of this one.
    dataset = tf.data.Dataset.range(steps.start, steps.stop, block).map(read_block).prefetch(1).unbatch()
    return dataset.with_options(options)


class TokenReader(BatchReader):
    """Reads windows of token shards.

    In training the stream is a circle of `num_tokens - 1` targets, whose windows are visited as `EpochShuffle` says.
    In validation each target has weight 1 (times its stored weight, if the shards have weights) in exactly one row;
    padding of weight 0 fills the last row.

    End-of-text belongs to the document that it begins: it is position 0, and the first token is predicted from it, as
    in generation; that prediction counts like every other. With `document_masking`, `segment_ids` number the documents
    of a row from 1, and `positions` restart; a row that begins inside a document begins with position 0.

    Args:
        shards: the tokens; `UserError` if they hold less than one window (training) or no target (validation).
        sequence_length: T, tokens a row.
        seed: seed of offsets and orders, any 64-bit integer; None: validation.
        document_masking: adds `segment_ids` and `positions`.

    Example:

    >>> import tempfile
    >>> from tfgpt.pipeline.token_shards import write_token_shards
    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = write_token_shards([{"text": "abc"}], byte_tokenizer(), f"{folder}/shards")
    ...     batch = next(iter(training_batches(TokenReader(shards, 2, seed=0), batch_size=8)))
    >>> batch["targets"].shape
    TensorShape([8, 2])
    """

    def __init__(
        self, shards: TokenShards, sequence_length: int, *, seed: int | None = None, document_masking: bool = False
    ):
        self.shards, self.sequence_length, self.document_masking = shards, sequence_length, document_masking
        targets = shards.num_tokens - 1
        self.num_rows = -(-targets // sequence_length) if seed is None else targets // sequence_length
        if seed is None and not targets:
            raise UserError(
                f"--validation_fraction: no token is held out: {shards.origin}; give more text or a larger fraction"
            )
        if not self.num_rows:
            raise UserError(
                f"--train_text: {shards.num_tokens} tokens are fewer than one row of --sequence_length="
                f"{sequence_length} needs ({sequence_length + 1}): {shards.origin}; give more text, leave the source "
                f"out or set --sequence_length to at most {max(targets, 1)}"
            )
        self.shuffle = None if seed is None else EpochShuffle(targets, sequence_length, seed)
        names = ["token_ids", "targets", *(("segment_ids", "positions") if document_masking else ())]
        self.types = dict.fromkeys(names, np.dtype(np.int32))
        self.adds_weights = shards.weights is None and self.shuffle is not None
        if not self.adds_weights:
            self.types["weights"] = np.dtype(np.float32)
        self.shapes = dict.fromkeys(self.types, (sequence_length,))

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        return self.read_windows(self.shuffle.starts(numbers) if self.shuffle else numbers * self.sequence_length)

    def read_rows(self, epochs: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        assert self.shuffle is not None
        offsets = np.array([self.shuffle.offset(epoch) for epoch in epochs.tolist()], np.int64)
        return self.read_windows((offsets + rows * self.sequence_length) % self.shuffle.targets)

    def read_windows(self, starts: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of the windows that begin at `starts` [n], each [n, T]."""
        shards, length = self.shards, self.sequence_length
        # Rows that only fill the last batch begin after the end; what they read is replaced below.
        within = np.minimum(starts, shards.num_tokens - 1)
        windows = shards.tokens.windows(within, length + 1)
        arrays = {"token_ids": windows[:, :-1].astype(np.int32), "targets": windows[:, 1:].astype(np.int32)}
        if self.document_masking:
            arrays |= document_borders(arrays["token_ids"], shards.end_of_text_id)
        if shards.weights is not None:
            arrays["weights"] = shards.weights.windows(within, length + 1)[:, 1:].astype(np.float32)
        elif not self.adds_weights:
            arrays["weights"] = np.ones([len(starts), length], np.float32)
        if self.shuffle is None:
            padding = starts[:, None] + np.arange(length) >= shards.num_tokens - 1
            for name, array in arrays.items():
                array[padding] = shards.padding_id if name in ("token_ids", "targets") else 0
        return arrays


class MixtureReader(BatchReader):
    """Reads rows of several readers in given shares, for training.

    Args:
        readers: a reader for each source, with the same arrays.
        weights, temperature: see `mixture_weights`; sizes are the readers' `num_rows`.

    Attributes:
        shares: [sources] the share of each source in the rows.

    Example:

    >>> class Constant(BatchReader):
    ...     num_rows, types, shapes = 4, {"targets": np.dtype(np.int32)}, {"targets": ()}
    ...     def read_rows(self, epochs, rows):
    ...         return {"targets": rows}
    >>> batches = training_batches(MixtureReader([Constant(), Constant()], seed=0), batch_size=8)
    >>> sorted(next(iter(batches))["targets"].numpy().tolist())
    [0, 0, 1, 2, 2, 3, 3, 3]
    """

    def __init__(
        self, readers: Sequence[BatchReader], *, seed: int, weights: Sequence[str] = (), temperature: float = 1.0
    ):
        self.readers = readers
        sizes = [reader.num_rows for reader in readers]
        self.mixture = Mixture(sizes, mixture_weights(sizes, weights, temperature), seed)
        self.shares = self.mixture.counts / self.mixture.counts.sum()
        self.types, self.shapes, self.adds_weights = readers[0].types, readers[0].shapes, readers[0].adds_weights

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        # (n, 3): source, epoch of the source, row in it
        rows = np.array([self.mixture.row(number) for number in numbers.tolist()], np.int64)
        arrays = {name: np.empty((len(numbers), *self.shapes[name]), dtype) for name, dtype in self.types.items()}
        for source in np.unique(rows[:, 0]):
            index = np.flatnonzero(rows[:, 0] == source)
            for name, values in self.readers[source].read_rows(*rows[index, 1:].T).items():
                arrays[name][index] = values
        return arrays


def document_borders(token_ids: np.ndarray, end_of_text_id: int) -> dict[str, np.ndarray]:
    """Returns `segment_ids` (from 1) and `positions` (from 0 in each segment), int32 [n, T], of ids [n, T]."""
    position = np.arange(token_ids.shape[1], dtype=np.int32)
    begins = token_ids == end_of_text_id
    begins[:, 0] = True
    return {
        "segment_ids": np.cumsum(begins, axis=1, dtype=np.int32),
        "positions": position - np.maximum.accumulate(np.where(begins, position, 0), axis=1),
    }
