"""Token shards to batches: what step s receives is a pure function of (shards, shape, seed, s).

Training. The stream of N tokens (first and last are end-of-text) is a circle of N-1 targets. An epoch cuts it into
`(N-1) // T` windows of T targets, beginning at an offset of its own, so that every epoch cuts elsewhere and the rest
that fills no window is another one each time. The windows are visited in a permuted order. Row r of step s is window
number `s * batch_size + r`: epoch `number // windows`, place `number % windows` in that epoch's permutation. Nothing
is remembered from step to step: going on at step 1,000,000 costs what step 0 costs. An epoch may end within a batch.

Permutations are `RandomIndexShuffle` (the operation behind `tf.random.experimental.index_shuffle`): a block cipher
that permutes [0, n) one number at a time, in constant time and memory. We call it with 16 rounds: with the public
function's 4, permutations of 20,000 windows under neighbouring seeds correlate by 0.25 and neighbouring windows by
0.024 where chance gives 0.007; 8 rounds already show neither. Its smallest block is large: below 4,096 windows it takes
2,000/n microseconds a number (1 ms for two windows), so that such epochs are permuted by a table instead. Both
measured on 2026-11-22.

A window's numbers are read through memory maps by one `tf.numpy_function` for a block of steps (up to 260,000 tokens)
and then dealt out step by step. A design in graph operations only (`ImmutableConst` over the file, `tf.gather`) took
1.6 times the CPU time at 64 × 256, about as much at 8 × 256, and knows one file.

Documents. End-of-text belongs to the document that it opens: it is position 0, from it the first token is predicted,
as generation does, and that prediction counts like every other. With `document_masking`, `segment_ids` number the
documents of a row from 1 and `positions` restart; a row that begins inside a document begins with position 0.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import SettingError, UserError
from tfgpt.pipeline.token_shards import TokenShards

# At most so many tokens and rows are read in one go (but always a step).
BLOCK_TOKENS = 1 << 18
BLOCK_ROWS = 1 << 10
SHUFFLE_ROUNDS = 16
# Epochs of fewer windows are permuted by a table.
SMALL_EPOCH = 1 << 12
LAST_STEP = 1 << 62


def training_batches(
    shards: TokenShards,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    document_masking: bool = False,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """Endless shuffled batches from `start_step` on.

    Args:
        shards: the tokens.
        sequence_length: T, tokens a row.
        batch_size: B, rows of the global batch.
        seed: any integer that fits 64 bits; another seed gives other offsets and orders.
        start_step: the step whose batch comes first; costs nothing.
        document_masking: also give `segment_ids` and `positions`.
        num_shards: hosts that share a global batch; must divide `batch_size`.
        shard_index: which host this is: its rows are the contiguous part number `shard_index` of the global batch.
        parts: devices of this host: its rows of a step come as so many elements, one after the other; must divide them.

    Returns:
        A `tf.data.Dataset` of dictionaries, with R = B / num_shards / parts rows: `token_ids` and `targets` int32
        [R, T], `weights` float32 [R, T], and with `document_masking` `segment_ids` and `positions` int32 [R, T].

    Raises:
        UserError: the shards hold fewer tokens than one window.
        SettingError: `batch_size` does not divide by `num_shards`, or a host's rows not by `parts`.
    """
    rows = rows_of_host(batch_size, num_shards, shard_index, parts)
    targets = shards.num_tokens - 1
    windows = targets // sequence_length
    if windows == 0:
        raise UserError(
            f"--train_text: {shards.num_tokens} tokens are fewer than one row of --sequence_length={sequence_length} "
            f"needs ({sequence_length + 1}): {shards.origin}; give more text or set --sequence_length to at most "
            f"{max(targets, 1)}"
        )
    order = EpochShuffle(targets, sequence_length, seed)
    steps = steps_of_block(rows, sequence_length)
    in_block = numbers_in_block(steps, batch_size, rows, shard_index)
    make = BatchReader(shards, sequence_length, document_masking, circular=True)

    def block(step: tf.Tensor) -> dict[str, tf.Tensor]:
        number = step * batch_size + in_block
        return make.block(order.starts, order.inputs(number), steps * parts, rows // parts)

    return endless(block, start_step, steps)


def validation_batches(
    shards: TokenShards,
    *,
    sequence_length: int,
    batch_size: int,
    document_masking: bool = False,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """The whole stream once, in order: each of its `num_tokens - 1` targets has weight 1 in exactly one batch.

    (Times its stored loss weight, when the shards have weights.) The last row is filled up with the padding token and
    weight 0, the last batch with rows of weight 0, so that all batches have one shape. The cardinality is known.

    Args, element structure and errors are those of `training_batches`; every host gets equally many batches.

    Raises:
        UserError: the shards hold no target at all.
    """
    rows = rows_of_host(batch_size, num_shards, shard_index, parts)
    batches = validation_steps(shards, sequence_length, batch_size)
    steps = min(steps_of_block(rows, sequence_length), batches)
    make = BatchReader(shards, sequence_length, document_masking, circular=False)

    in_block = numbers_in_block(steps, batch_size, rows, shard_index)

    def starts(step: np.ndarray) -> np.ndarray:
        return (step * batch_size + in_block) * sequence_length

    return once(lambda step: make.block(starts, [step], steps * parts, rows // parts), batches, steps, parts)


def validation_steps(shards: TokenShards, sequence_length: int, batch_size: int) -> int:
    """How many global batches `validation_batches` has.

    Raises:
        UserError: the shards hold no target at all.
    """
    targets = shards.num_tokens - 1
    if targets == 0:
        raise UserError(
            f"--validation_fraction: no token is held out: {shards.origin}; give more text or a larger fraction"
        )
    return -(-targets // (sequence_length * batch_size))


class EpochShuffle:
    """Which window each row gets: an offset and a permutation for every epoch.

    Args:
        targets: tokens on the circle.
        sequence_length: T, targets a window.
        seed: any integer of 64 bits.
    """

    def __init__(self, targets: int, sequence_length: int, seed: int):
        self.targets, self.sequence_length, self.seed = targets, sequence_length, seed
        self.windows = targets // sequence_length
        self.offset = functools.lru_cache(maxsize=1024)(self.computed_offset)

    def inputs(self, number: tf.Tensor) -> list[tf.Tensor]:
        """What `starts` needs to know of rows with these running numbers (int64 [n]), made in graph."""
        if self.windows < SMALL_EPOCH:
            return [number]
        # The cipher's key: 32 bits of the seed, the other 32, the epoch.
        key = np.array([[self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF, 0]], np.int64)
        places = tf.raw_ops.RandomIndexShuffle(
            index=number % self.windows,
            seed=key + (number // self.windows)[:, None] * np.array([[0, 0, 1]], np.int64),
            max_index=np.full(number.shape, self.windows - 1, np.int64),
            rounds=SHUFFLE_ROUNDS,
        )
        return [number, places]

    def starts(self, number: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Where on the circle the windows begin, in [0, targets).

        Args:
            number: the rows' running numbers, consecutive or nearly; int64 [n].
            places: the place of each on its epoch's grid; None for small epochs, which have tables. int64 [n].
        """
        epochs, row_epoch = np.unique(number // self.windows, return_inverse=True)
        offsets = np.array([self.offset(int(epoch)) for epoch in epochs], np.int64)
        if places is None:
            tables = np.stack([self.small_permutation(int(epoch)) for epoch in epochs])
            places = tables[row_epoch, number % self.windows]
        return (offsets[row_epoch] + places * self.sequence_length) % self.targets

    def computed_offset(self, epoch: int) -> int:
        """Where an epoch's grid begins, in [0, targets): a hash of seed and epoch."""
        digest = hashlib.blake2b(f"offset {self.seed} {epoch}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.targets

    def small_permutation(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch, whole: [windows]. The order of as many random numbers of 64 bits."""
        digest = hashlib.shake_256(f"order {self.seed} {epoch}".encode()).digest(8 * self.windows)
        return np.argsort(np.frombuffer(digest, "<u8"), kind="stable")


class BatchReader:
    """Reads windows and turns them into the tensors of a batch.

    Args:
        shards: the tokens.
        sequence_length: T.
        document_masking: also `segment_ids` and `positions`.
        circular: windows go round the circle (training); otherwise what lies behind the stream's end is padding.
    """

    def __init__(self, shards: TokenShards, sequence_length: int, document_masking: bool, circular: bool):
        self.shards, self.sequence_length = shards, sequence_length
        self.document_masking, self.circular = document_masking, circular
        self.types = {"token_ids": tf.int32, "targets": tf.int32}
        if document_masking:
            self.types |= {"segment_ids": tf.int32, "positions": tf.int32}
        if shards.weights is not None or not circular:
            self.types |= {"weights": tf.float32}

    def block(self, starts: Callable[..., Any], inputs: list[tf.Tensor], steps: int, rows: int) -> dict[str, tf.Tensor]:
        """The tensors of several steps, each [steps, rows, T].

        Args:
            starts: gives, from the inputs' values, where the windows begin: int64 [steps * rows].
            inputs: tensors.
            steps: steps in the block.
            rows: rows a step.
        """

        def read(*values: np.ndarray) -> list[np.ndarray]:
            return self.read(starts(*values))

        arrays = tf.numpy_function(read, inputs, list(self.types.values()), stateful=False)
        shape = [steps, rows, self.sequence_length]
        tensors = {name: tf.reshape(array, shape) for name, array in zip(self.types, arrays)}
        # A constant, not tf.ones: that would be filled again for every block, a quarter of the whole cost.
        return tensors if "weights" in tensors else {**tensors, "weights": tf.constant(np.ones(shape, np.float32))}

    def read(self, starts: np.ndarray) -> list[np.ndarray]:
        """The arrays named in `types` for the windows that begin at `starts` [n], each [n, T]."""
        shards, length = self.shards, self.sequence_length
        # Rows that only fill a last batch begin behind the end: they read anything, and count as nothing.
        within = np.minimum(starts, shards.num_tokens - 1)
        windows = shards.tokens.windows(within, length + 1)
        arrays = {"token_ids": windows[:, :-1].astype(np.int32), "targets": windows[:, 1:].astype(np.int32)}
        if self.document_masking:
            arrays |= document_borders(arrays["token_ids"], shards.end_of_text_id)
        if "weights" in self.types:
            if shards.weights is not None:
                arrays["weights"] = shards.weights.windows(within, length + 1)[:, 1:].astype(np.float32)
            else:
                arrays["weights"] = np.ones([len(starts), length], np.float32)
        if not self.circular:
            padding = starts[:, None] + np.arange(length) >= shards.num_tokens - 1
            fill = {"token_ids": shards.padding_id, "targets": shards.padding_id}
            for name, array in arrays.items():
                array[padding] = fill.get(name, 0)
        return [arrays[name] for name in self.types]


def document_borders(token_ids: np.ndarray, end_of_text_id: int) -> dict[str, np.ndarray]:
    """`segment_ids` (from 1) and `positions` (from 0 in each segment), int32 [n, T], of rows of ids [n, T]."""
    place = np.arange(token_ids.shape[1], dtype=np.int32)
    begins = token_ids == end_of_text_id
    begins[:, 0] = True
    return {
        "segment_ids": np.cumsum(begins, axis=1, dtype=np.int32),
        "positions": place - np.maximum.accumulate(np.where(begins, place, 0), axis=1),
    }


def rows_of_host(batch_size: int, num_shards: int, shard_index: int, parts: int = 1) -> int:
    """Rows of the global batch that one of `num_shards` hosts makes, for `parts` devices."""
    if batch_size % num_shards:
        raise SettingError("batch_size", f"{batch_size} rows do not divide among {num_shards} hosts")
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index {shard_index} is not one of {num_shards} shards")
    if batch_size // num_shards % parts:
        raise SettingError("batch_size", f"{batch_size // num_shards} rows of a host do not divide by {parts} devices")
    return batch_size // num_shards


def steps_of_block(rows: int, sequence_length: int) -> int:
    """Steps that are read in one go."""
    return max(1, min(BLOCK_ROWS // rows, BLOCK_TOKENS // (rows * sequence_length)))


def numbers_in_block(steps: int, batch_size: int, rows: int, shard_index: int) -> np.ndarray:
    """The numbers of a host's rows in a block, from the first row of its first step's global batch on: [steps * rows].

    Args:
        steps: steps of the block.
        batch_size: rows of a global batch.
        rows: of them the host's.
        shard_index: which host this is.
    """
    return (np.arange(steps)[:, None] * batch_size + shard_index * rows + np.arange(rows)).reshape(-1)


def endless(block: Callable[[tf.Tensor], dict[str, tf.Tensor]], start_step: int, steps: int) -> tf.data.Dataset:
    """The elements of block after block, for ever.

    Args:
        block: first step → tensors, each [elements, …].
        start_step: where the first block begins.
        steps: steps of a block.
    """
    dataset = tf.data.Dataset.range(start_step, LAST_STEP, steps).map(block)
    # The next block is read while the steps of this one are trained; dealing them out is a copy of some kilobytes.
    return with_options(dataset.prefetch(1).unbatch())


def once(
    block: Callable[[tf.Tensor], dict[str, tf.Tensor]], batches: int, steps: int, parts: int = 1
) -> tf.data.Dataset:
    """The elements of all global batches once, `parts` of each; the cardinality is known. The others as `endless`'."""
    dataset = tf.data.Dataset.range(0, batches, steps).map(block).prefetch(1).unbatch().take(batches * parts)
    return with_options(dataset.apply(tf.data.experimental.assert_cardinality(batches * parts)))


def with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Deterministic, never resharded by a strategy (hosts already have their rows), and frugal with threads."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = 1
    return dataset.with_options(options)
