"""Packed conversations to batches: what step s receives is a pure function of (conversations, shape, seed, s).

Row r of step s is row number `s * batch_size + r`, which `mixture.Mixture` turns into a source, an epoch of it and one
of its packed rows. Each part of a conversation is a segment: attention stays within it and positions restart. What is
behind the last part of a row is padding of weight 0 in a segment of its own (number 0).

With augmentation, what users say is said in another way in every epoch. A row is packed once and for all, so each part
is given some room for longer words, an eighth of what is not learned; a change that does not fit is drawn again, and
after `ATTEMPTS` draws the words stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.pipeline.augmentation import Augmentation
from tfgpt.pipeline.batches import BatchReader, endless, numbers_in_block, once, rows_of_host, steps_of_block
from tfgpt.pipeline.chat_shards import ChatShards, trimmed
from tfgpt.pipeline.mixture import Mixture
from tfgpt.pipeline.packing import Packing
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer

ATTEMPTS = 4
ROOM = 8
"""A part that may be changed gets one place more for so many that are not learned."""


def packings(
    conversations: ChatShards, length: int, by_source: bool, augmentation: Augmentation | None = None
) -> list[Packing]:
    """The rows of all parts together, or of each source (in the order of `source_names`; one may have no row)."""
    lengths = np.asarray(conversations.lengths)
    if augmentation is not None and augmentation.active:
        lengths = np.minimum(lengths + (lengths - conversations.learned) // ROOM, length)
    if not by_source:
        return [Packing(lengths, length)]
    packed = []
    for number in range(len(conversations.source_names)):
        parts = np.flatnonzero(conversations.sources == number)
        packed.append(Packing(lengths[parts], length, parts))
    return packed


class ChatRows(BatchReader):
    """Fills rows with parts of conversations.

    Args:
        conversations: the parts.
        sequence_length: T.
        padding_id: the id behind the last part.
        augmentation: changes of what users say; needs the tokenizer.
        tokenizer: encodes what was changed.
    """

    def __init__(
        self,
        conversations: ChatShards,
        sequence_length: int,
        padding_id: int,
        augmentation: Augmentation | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        self.conversations, self.sequence_length, self.padding_id = conversations, sequence_length, padding_id
        self.augmentation = augmentation if augmentation is not None and augmentation.active else None
        self.tokenizer = tokenizer
        names = ("token_ids", "targets", "segment_ids", "positions")
        self.types = {**dict.fromkeys(names, tf.int32), "weights": tf.float32}

    def read(self, starts: Any) -> Any:
        """What `block` is given is filled already."""
        return starts

    def filled(self, rows: Sequence[tuple[int, Sequence[int]]]) -> list[np.ndarray]:
        """The arrays named in `types`, each [rows, T].

        Args:
            rows: the epoch and the parts of each.
        """
        shape = (len(rows), self.sequence_length)
        token_ids = np.full(shape, self.padding_id, np.int32)
        targets = np.full(shape, self.padding_id, np.int32)
        segment_ids = np.zeros(shape, np.int32)
        positions = np.empty(shape, np.int32)
        weights = np.zeros(shape, np.float32)
        for row, (epoch, parts) in enumerate(rows):
            start = 0
            free = self.sequence_length - sum(int(self.conversations.lengths[part]) for part in parts)
            for segment, part in enumerate(parts, start=1):
                ids, counted, free = self.part(part, epoch, free)
                end = start + len(ids) - 1
                token_ids[row, start:end] = ids[:-1]
                targets[row, start:end] = ids[1:]
                weights[row, start:end] = counted[1:]
                segment_ids[row, start:end] = segment
                positions[row, start:end] = np.arange(end - start)
                start = end
            positions[row, start:] = np.arange(self.sequence_length - start)
        return [token_ids, targets, segment_ids, positions, weights]

    def part(self, number: int, epoch: int, free: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids and weights of a part in an epoch, and the free places that are left of `free`."""
        if self.augmentation is not None and self.tokenizer is not None:
            dialogue = self.conversations.dialogue(number)
            messages, tools = dialogue["messages"], dialogue.get("tools")
            length = int(self.conversations.lengths[number])
            for attempt in range(ATTEMPTS):
                changed = self.augmentation.changed(messages, epoch, number, attempt)
                if changed == messages:
                    break
                encoded = encode_messages(self.tokenizer, changed, tools=tools)
                ids, weights = trimmed(*encoded, self.sequence_length + length)
                # A part whose end does not fit a row was shortened when it was made; its words stay.
                more = len(ids) - 1 - length
                if len(ids) and more <= free and self.conversations.learned[number] == (weights[1:] > 0).sum():
                    return ids, weights, free - more
        return *self.conversations.part(number), free


def chat_training_batches(
    rows: ChatRows,
    packed: Sequence[Packing],
    mixture: Mixture,
    *,
    batch_size: int,
    start_step: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """Endless batches from `start_step` on.

    Args:
        rows: fills them.
        packed: the rows of each source of the mixture.
        mixture: deals them out.
        batch_size, start_step, num_shards, shard_index, parts: as `batches.training_batches`'.

    Returns:
        A `tf.data.Dataset` of dictionaries with R = batch_size / num_shards / parts rows: `token_ids`, `targets`,
        `segment_ids`, `positions` int32 [R, T], `weights` float32 [R, T].
    """
    count = rows_of_host(batch_size, num_shards, shard_index, parts)
    steps = steps_of_block(count, rows.sequence_length)
    in_block = numbers_in_block(steps, batch_size, count, shard_index)

    def chosen(number: int) -> tuple[int, list[int]]:
        source, epoch, row = mixture.row(number)
        return epoch, packed[source].rows[row]

    def read(step: np.ndarray) -> list[np.ndarray]:
        return rows.filled([chosen(number) for number in (step * batch_size + in_block).tolist()])

    return endless(lambda step: rows.block(read, [step], steps * parts, count // parts), start_step, steps)


def chat_validation_batches(
    rows: ChatRows,
    packed: Packing,
    *,
    batch_size: int,
    num_shards: int = 1,
    shard_index: int = 0,
    parts: int = 1,
) -> tf.data.Dataset:
    """All rows once, in order, filled up with rows of weight 0; the cardinality is known.

    Args and element structure are those of `chat_training_batches`; every host gets equally many batches.
    """
    count = rows_of_host(batch_size, num_shards, shard_index, parts)
    batches = chat_validation_steps(packed, batch_size)
    steps = min(steps_of_block(count, rows.sequence_length), batches)
    in_block = numbers_in_block(steps, batch_size, count, shard_index)

    def read(step: np.ndarray) -> list[np.ndarray]:
        numbers = (step * batch_size + in_block).tolist()
        return rows.filled([(0, packed.rows[number] if number < len(packed) else []) for number in numbers])

    return once(lambda step: rows.block(read, [step], steps * parts, count // parts), batches, steps, parts)


def chat_validation_steps(packed: Packing, batch_size: int) -> int:
    """How many global batches `chat_validation_batches` has.

    Raises:
        UserError: nothing is held out.
    """
    if not len(packed):
        raise UserError("--validation_fraction: no conversation is held out; give more text or a larger fraction")
    return -(-len(packed) // batch_size)
