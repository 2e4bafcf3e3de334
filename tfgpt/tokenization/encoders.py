"""Encoders of valid text on the CPU: tiktoken where it gives exactly the ids of the file, otherwise `tokenizers`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import tiktoken
import tokenizers

from tfgpt.tokenization.pretokenizer import PATTERN

Item = TypeVar("Item")
Result = TypeVar("Result")

PART_CHARACTERS = 1 << 18  # that a thread encodes at a time

SAFE_CUT = re.compile(
    "(?<=[0-9A-Za-zぁ-ゖァ-ヺ一-鿿가-힣!-/])(?=[ \n])|(?<=[A-Za-zぁ-ゖァ-ヺ一-鿿가-힣])(?=[!-/。，、；：？！])"
)
"""Positions where `PATTERN` cuts in any context: before white space that follows something else, and between a letter
and a sign. It lists only characters whose class is the same in all versions of Unicode."""


class TextEncoder:
    """Encodes valid Unicode strings; can be called from several threads."""

    def encode(self, text: str) -> np.ndarray:
        """Returns [n] int32 ids, without special tokens. Raises UnicodeEncodeError for lone surrogates."""
        raise NotImplementedError

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def copy(self) -> TextEncoder:
        """Returns an equal encoder for another thread; itself if threads do not slow each other down."""
        return self


def ids_of_bytes(content: bytes, id_of_byte: np.ndarray) -> np.ndarray:
    """Returns [n] int32 ids of bytes, without the bytes that have no token (-1 in the table)."""
    ids = id_of_byte[np.frombuffer(content, np.uint8)]
    return ids[ids >= 0]


class BytesEncoder(TextEncoder):
    """Encoder of a vocabulary without merges; `id_of_byte` is [256] int32."""

    def __init__(self, id_of_byte: np.ndarray):
        self.id_of_byte = id_of_byte

    def encode(self, text: str) -> np.ndarray:
        return ids_of_bytes(text.encode(), self.id_of_byte)


class TiktokenEncoder(TextEncoder):
    """OpenAI's `tiktoken` with our pre-tokenizer and the results of `tiktoken_ranks`."""

    separator = "<|between two texts of a batch|>"
    """The only special token of tiktoken; it joins the texts of a batch and is not looked for in the texts."""

    def __init__(self, ranks: dict[bytes, int], id_of_rank: np.ndarray):
        self.arguments = ranks, id_of_rank
        self.separator_rank = len(id_of_rank)
        self.encoding = tiktoken.Encoding(
            "tfgpt", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={self.separator: self.separator_rank}
        )
        self.id_of_rank = None if np.array_equal(id_of_rank, np.arange(len(id_of_rank))) else id_of_rank

    def encode(self, text: str) -> np.ndarray:
        return self._ids(self.encoding.encode_to_numpy(text, disallowed_special=()))

    def _ids(self, ranks: np.ndarray) -> np.ndarray:
        return ranks.view(np.int32) if self.id_of_rank is None else self.id_of_rank[ranks]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        # One call for all texts is faster, and threads do not wait for Python's lock between calls. tiktoken encodes
        # the text between two special tokens as if it stood alone.
        joined = self.separator.join(texts)
        if len(texts) < 2 or joined.count(self.separator) != len(texts) - 1:
            return [self.encode(text) for text in texts]
        ranks = self.encoding.encode_to_numpy(joined, allowed_special={self.separator}, disallowed_special=())
        ends = [*np.flatnonzero(ranks == self.separator_rank).tolist(), len(ranks)]
        starts = [0, *(end + 1 for end in ends[:-1])]
        return [self._ids(ranks[start:end]) for start, end in zip(starts, ends)]

    def copy(self) -> TiktokenEncoder:
        # The regular expression engine is fast only in the first thread that uses an encoding.
        return TiktokenEncoder(*self.arguments)


class ReferenceEncoder(TextEncoder):
    """`tokenizers` itself, which reads the content of `tokenizer.json`."""

    def __init__(self, document: dict[str, Any]):
        content = {**document, "truncation": None, "padding": None, "post_processor": None}
        self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        self.tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> np.ndarray:
        text.encode()
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            text.encode()
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


class EncoderThreadPool:
    """Thread pool in which each thread has a copy of the encoder."""

    def __init__(self, encoder: TextEncoder, count: int):
        local = self._local = threading.local()

        def start() -> None:
            local.encoder = encoder.copy()

        self._pool = concurrent.futures.ThreadPoolExecutor(count, "tokenizer", start)

    def map(self, function: Callable[[TextEncoder, Item], Result], items: Iterable[Item]) -> list[Result]:
        """Returns `function(encoder, item)` for each item, in order."""
        return list(self._pool.map(lambda item: function(self._local.encoder, item), items))


def split_text(text: str | bytes) -> Iterator[str | bytes]:
    """Splits a text into parts of about `PART_CHARACTERS`, at positions that do not change its ids."""
    if len(text) >= 2 * PART_CHARACTERS and isinstance(text, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            text = text.decode()
    if len(text) < 2 * PART_CHARACTERS or isinstance(text, bytes):
        yield text
        return
    start = 0
    while start < len(text):
        cut = SAFE_CUT.search(text, start + PART_CHARACTERS) if len(text) - start > PART_CHARACTERS else None
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def batches_by_size(items: Iterable[Item], size: int, length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Groups consecutive items into lists whose lengths add up to about `size`."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += length(item)
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def tiktoken_ranks(
    token_bytes: Sequence[bytes], merges: Sequence[tuple[int, int, int]], byte_ids: Sequence[int]
) -> tuple[dict[bytes, int], np.ndarray] | None:
    """Returns ranks with which tiktoken merges exactly as the list of merges (left, right, result) in order of rank.

    The rank of a token is that of the first merge that makes it. tiktoken joins *any* neighbors that make the token,
    the list only the pairs in it. Both are equal if BPE of each token's own bytes, with the merges of lower rank, ends
    in the pair of its first merge: the merges inside a part of a text that spells the token and is bounded by token
    boundaries are those of the token alone, so no other pair can occur.

    Returns:
        `{bytes: rank}` and [number of ranks] int32 ids by rank; None if there are no such ranks.
    """
    ids = list(byte_ids)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for left, right, result in merges:
        content = token_bytes[result]
        if content in ranks:
            continue
        if merge_bytes(content, ranks) != (token_bytes[left], token_bytes[right]):
            return None
        ranks[content] = len(ids)
        ids.append(result)
    return ranks, np.array(ids, np.int32)


def merge_bytes(content: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    parts = [content[index : index + 1] for index in range(len(content))]
    while len(parts) > 1:
        joined = [left + right for left, right in itertools.pairwise(parts)]
        best = min(range(len(joined)), key=lambda index: ranks.get(joined[index], len(ranks)))
        if joined[best] not in ranks:
            break
        parts[best : best + 2] = [joined[best]]
    return tuple(parts)
