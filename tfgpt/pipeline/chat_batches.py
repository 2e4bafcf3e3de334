"""Batches of packed conversations."""

from __future__ import annotations

import numpy as np

from tfgpt.common.errors import UserError
from tfgpt.pipeline.augmentation import Augmentation
from tfgpt.pipeline.batches import BatchReader
from tfgpt.pipeline.chat_shards import ChatShards, drop_unlearned_tail
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer

# Draws of an augmentation that do not fit their row, before the part stays as it is.
ATTEMPTS = 4
# A part that may be augmented gets one position more for so many that are not targets.
ROOM = 8


class ChatReader(BatchReader):
    """Reads rows of packed parts of conversations.

    Each part is a segment: attention stays within it and positions restart. Padding of weight 0 after the last part is
    segment 0. Augmentation changes the user's words in every epoch. A row is packed once, so each part gets some room
    for longer words; a change that does not fit is drawn again, and after `ATTEMPTS` draws the part stays as it is.

    `augmentation` needs `tokenizer`. Raises `UserError` if there is no row.

    Example:

    >>> import pathlib, tempfile
    >>> from tfgpt.pipeline.batches import validation_batches
    >>> from tfgpt.pipeline.chat_shards import write_chat_shards
    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     documents, directory = [{"messages": chat, "source": "a"}], pathlib.Path(folder, "shards")
    ...     shards = write_chat_shards(documents, byte_tokenizer(), directory, length=64, sources={"a": "a"})
    ...     reader = ChatReader(shards, Packing(shards.lengths, 64), 64, padding_id=0)
    ...     int(next(iter(validation_batches(reader, batch_size=1)))["weights"].numpy().sum())
    3
    """

    def __init__(
        self,
        shards: ChatShards,
        packing: Packing,
        sequence_length: int,
        padding_id: int,
        *,
        augmentation: Augmentation | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        self.shards, self.packing = shards, packing
        self.sequence_length, self.padding_id = sequence_length, padding_id
        self.augmentation = augmentation if augmentation is not None and augmentation.active else None
        self.tokenizer = tokenizer
        self.num_rows = len(packing)
        if not self.num_rows:
            raise UserError("--validation_fraction: no conversation is held out; give more text or a larger fraction")
        names = ("token_ids", "targets", "segment_ids", "positions")
        self.types = {**dict.fromkeys(names, np.dtype(np.int32)), "weights": np.dtype(np.float32)}
        self.shapes = dict.fromkeys(self.types, (sequence_length,))

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        return self.read_rows(np.zeros_like(numbers), numbers)

    def read_rows(self, epochs: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        shape = (len(rows), self.sequence_length)
        arrays = {name: np.zeros(shape, dtype) for name, dtype in self.types.items()}
        for name in ("token_ids", "targets"):
            arrays[name].fill(self.padding_id)
        for row, (epoch, number) in enumerate(zip(epochs.tolist(), rows.tolist())):
            # Rows after the last one fill a batch of validation.
            parts = self.packing.rows[number] if number < self.num_rows else []
            start = 0
            free = self.sequence_length - sum(int(self.shards.lengths[part]) for part in parts)
            for segment, part in enumerate(parts, start=1):
                ids, weights, free = self.part(part, epoch, free)
                end = start + len(ids) - 1
                arrays["token_ids"][row, start:end] = ids[:-1]
                arrays["targets"][row, start:end] = ids[1:]
                arrays["weights"][row, start:end] = weights[1:]
                arrays["segment_ids"][row, start:end] = segment
                arrays["positions"][row, start:end] = np.arange(end - start)
                start = end
            arrays["positions"][row, start:] = np.arange(self.sequence_length - start)
        return arrays

    def part(self, number: int, epoch: int, free: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns ids and weights of a part in an epoch, and the positions that are left of `free`."""
        if self.augmentation is not None and self.tokenizer is not None:
            dialogue = self.shards.dialogue(number)
            messages, tools = dialogue["messages"], dialogue.get("tools")
            length = int(self.shards.lengths[number])
            for attempt in range(ATTEMPTS):
                changed = self.augmentation.augment(messages, epoch, number, attempt)
                if changed == messages:
                    break
                encoded = encode_messages(self.tokenizer, changed, tools=tools)
                ids, weights = drop_unlearned_tail(*encoded, self.sequence_length + length)
                # A part that was shortened to fit a row stays as it is.
                more = len(ids) - 1 - length
                if len(ids) and more <= free and self.shards.num_targets[number] == (weights[1:] > 0).sum():
                    return ids, weights, free - more
        return *self.shards.part(number), free


def pack_conversations(
    shards: ChatShards, length: int, *, by_source: bool = False, augmentation: Augmentation | None = None
) -> list[Packing]:
    """Packs all parts together, or each source in the order of `source_names` (some may have no row)."""
    lengths = np.asarray(shards.lengths)
    if augmentation is not None and augmentation.active:
        lengths = np.minimum(lengths + (lengths - shards.num_targets) // ROOM, length)
    if not by_source:
        return [Packing(lengths, length)]
    parts = [np.flatnonzero(shards.sources == number) for number in range(len(shards.source_names))]
    return [Packing(lengths[numbers], length, numbers) for numbers in parts]


class Packing:
    """Rows of parts, packed so that little is padding.

    Best-fit decreasing: the longest part first, each into the fullest row that still has room. Attention never crosses
    from one part to another, so any parts can share a row.

    Args:
        lengths: [parts] length of each part, between 1 and `capacity`.
        capacity: T, the length of a row.
        parts: [parts] the number of each part; None: its index in `lengths`.

    Attributes:
        rows: for each row the numbers of its parts, in order.
        efficiency: the share of the rows that is not padding.
    """

    def __init__(self, lengths: np.ndarray, capacity: int, parts: np.ndarray | None = None):
        numbers = np.arange(len(lengths)) if parts is None else parts
        self.capacity = capacity
        self.rows: list[list[int]] = []
        # Rows by the room they have left; the bits of `some` say which lists are not empty.
        by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
        some = 0
        for index in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[index])
            fitting = some >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                row = by_room[room].pop()
                if not by_room[room]:
                    some &= ~(1 << room)
            else:
                room, row = capacity, len(self.rows)
                self.rows.append([])
            self.rows[row].append(int(numbers[index]))
            by_room[room - length].append(row)
            some |= 1 << (room - length)
        self.efficiency = int(lengths.sum()) / max(len(self.rows) * capacity, 1)

    def __len__(self) -> int:
        return len(self.rows)
