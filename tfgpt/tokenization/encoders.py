"""Valid text to ids on the CPU: tiktoken where it gives exactly the file's ids, `tokenizers` itself elsewhere.

Measured on English with 4096 entries, MB a CPU-second: tiktoken 18 to 19 on long text and 14 to 16 on texts of 150
characters, `tokenizers` 2.3 batched and 1.1 on one long text, single bytes 220. (2 cores that others used too.)
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import tiktoken
import tokenizers

from tfgpt.tokenization.pretokenizer import PATTERN

Portion = TypeVar("Portion")


class TextEncoder(Protocol):
    """What turns a valid Unicode string into ids; several threads may call it at once."""

    def encode(self, text: str) -> np.ndarray:
        """[n] int32 ids of `text`, in which special tokens are never looked for."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text."""

    def copy(self) -> TextEncoder:
        """An equal encoder for another thread; the same one where threads do not hinder each other."""


def ids_of_bytes(content: bytes, id_of_byte: np.ndarray) -> np.ndarray:
    """[n] int32, the id of each byte; bytes without one (-1 in the table) are dropped."""
    ids = id_of_byte[np.frombuffer(content, np.uint8)]
    return ids[ids >= 0]


class BytesEncoder:
    """A vocabulary without merges: a table look-up a byte.

    Args:
        id_of_byte: [256] int32.
    """

    def __init__(self, id_of_byte: np.ndarray):
        self.id_of_byte = id_of_byte

    def encode(self, text: str) -> np.ndarray:
        """[n] int32 ids; raises UnicodeEncodeError for lone surrogates."""
        return ids_of_bytes(text.encode(), self.id_of_byte)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    def copy(self) -> BytesEncoder:
        """The same encoder."""
        return self


class TiktokenEncoder:
    """OpenAI's `tiktoken` over our pre-token expression.

    tiktoken knows no list of merges: it joins whichever neighbouring pair makes the token of lowest rank. See
    `tiktoken_ranks` for when that gives the same tokens.

    Args:
        ranks: rank of each mergeable token, all 256 bytes among them.
        id_of_rank: [highest rank + 1] int32.
    """

    separator = "<|between two texts of a batch|>"
    """tiktoken's only special token; it is looked for in batches that we join ourselves, never in a user's text."""

    def __init__(self, ranks: dict[bytes, int], id_of_rank: np.ndarray):
        self.arguments = ranks, id_of_rank
        self.separator_rank = len(id_of_rank)
        self.encoding = tiktoken.Encoding(
            "tfgpt", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={self.separator: self.separator_rank}
        )
        self.id_of_rank = None if np.array_equal(id_of_rank, np.arange(len(id_of_rank))) else id_of_rank

    def encode(self, text: str) -> np.ndarray:
        """[n] int32 ids; raises UnicodeEncodeError for lone surrogates."""
        return self._ids(self.encoding.encode_to_numpy(text, disallowed_special=()))

    def _ids(self, ranks: np.ndarray) -> np.ndarray:
        return ranks.view(np.int32) if self.id_of_rank is None else self.id_of_rank[ranks]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text; views into one array.

        The texts are joined by the separator and encoded by one call: for texts of 150 characters that is 17.7 MB a
        CPU-second against 12.8 text by text, and threads do not queue for Python's lock between the calls. tiktoken
        encodes what stands between two special tokens as if it stood alone.
        """
        joined = self.separator.join(texts)
        if len(texts) < 2 or joined.count(self.separator) != len(texts) - 1:
            return [self.encode(text) for text in texts]
        ranks = self.encoding.encode_to_numpy(joined, allowed_special={self.separator}, disallowed_special=())
        ends = [*np.flatnonzero(ranks == self.separator_rank).tolist(), len(ranks)]
        starts = [0, *(end + 1 for end in ends[:-1])]
        return [self._ids(ranks[start:end]) for start, end in zip(starts, ends)]

    def copy(self) -> TiktokenEncoder:
        """A new encoding with the same ranks (20 ms for 4096).

        The Rust regular expression is quick only in the first thread that uses it: others fetch its scratch memory
        from a shared pool at every match. Measured for 11 MB: 0.56 CPU-seconds in the first thread, 0.77 in another,
        0.58 in another with a copy of its own.
        """
        return TiktokenEncoder(*self.arguments)


class ReferenceEncoder:
    """`tokenizers` itself, told not to look for the special tokens of the file in the text.

    Args:
        document: the content of `tokenizer.json`.
    """

    def __init__(self, document: dict[str, Any]):
        whole = {**document, "truncation": None, "padding": None, "post_processor": None}
        self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(whole))
        self.tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> np.ndarray:
        """[n] int32 ids; raises UnicodeEncodeError for lone surrogates."""
        text.encode()
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text; `tokenizers` uses threads of its own."""
        for text in texts:
            text.encode()
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def copy(self) -> ReferenceEncoder:
        """The same encoder."""
        return self


class EncoderThreadPool:
    """Threads that wait for texts to encode, each with an encoder of its own.

    Args:
        encoder: the encoder to copy.
        count: threads.
    """

    def __init__(self, encoder: TextEncoder, count: int):
        own = self._own = threading.local()

        def start() -> None:
            own.encoder = encoder.copy()

        self._pool = concurrent.futures.ThreadPoolExecutor(count, "tokenizer", start)

    def map(
        self, function: Callable[[TextEncoder, Portion], list[np.ndarray]], portions: Iterable[Portion]
    ) -> list[list[np.ndarray]]:
        """`function(encoder, portion)` of each portion, in order."""
        return list(self._pool.map(lambda portion: function(self._own.encoder, portion), portions))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()


def tiktoken_ranks(
    token_bytes: Sequence[bytes], merges: Sequence[tuple[int, int, int]], byte_ids: Sequence[int]
) -> tuple[dict[bytes, int], np.ndarray] | None:
    """Ranks with which tiktoken merges exactly as the list of merges does, or None when there are none.

    A token's rank is that of the first merge that makes it. tiktoken may join *any* two neighbours that make the
    token, the list only the pairs in it. They are the same when, for every token, BPE of its own bytes with the
    merges of lower rank ends in exactly the pair of its first merge: whenever a stretch of text that spells the token
    is bounded by token boundaries, the merges inside it are those of the token alone, so no other pair can occur.

    Args:
        token_bytes: bytes of each id.
        merges: (left id, right id, id of the result) in order of rank.
        byte_ids: the id of each byte.

    Returns:
        `{bytes: rank}` and [number of ranks] int32 ids by rank, or None.
    """
    ids = list(byte_ids)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for left, right, result in merges:
        content = token_bytes[result]
        if content in ranks:
            continue
        if merged_pair(content, ranks) != (token_bytes[left], token_bytes[right]):
            return None
        ranks[content] = len(ids)
        ids.append(result)
    return ranks, np.array(ids, np.int32)


def merged_pair(content: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    """What tiktoken's merging makes of `content` with the ranks known so far."""
    parts = [content[index : index + 1] for index in range(len(content))]
    while len(parts) > 1:
        joined = [left + right for left, right in itertools.pairwise(parts)]
        best = min(range(len(joined)), key=lambda index: ranks.get(joined[index], len(ranks)))
        if joined[best] not in ranks:
            break
        parts[best : best + 2] = [joined[best]]
    return tuple(parts)
