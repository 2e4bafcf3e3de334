"""Byte-level BPE tokenizer."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfgpt.common.atomic_files import sha256_of_json, write_json, write_text
from tfgpt.tokenization.encoders import (
    PART_CHARACTERS,
    BytesEncoder,
    EncoderThreadPool,
    ReferenceEncoder,
    TextEncoder,
    TiktokenEncoder,
    batches_by_size,
    ids_of_bytes,
    split_text,
    tiktoken_ranks,
)
from tfgpt.tokenization.pretokenizer import BYTE_OF_CHARACTER, PRE_TOKENIZER, byte_alphabet, pretrained_family
from tfgpt.tokenization.special_tokens import CHAT_TEMPLATE, KEY, LAST_BYTE, SPECIAL_TOKENS, SpecialTokens
from tfgpt.tokenization.tokenizer_json import (
    added_tokens_limitation,
    merges_of,
    pre_tokenizers,
    rank_order_is_merge_order,
    special_token_names,
)

INVALID_BYTES = re.compile("([\udc80-\udcff]+)")
"""Bytes that are not UTF-8, decoded with Python's `surrogateescape`."""


class Tokenizer:
    """Byte-level BPE tokenizer.

    Every byte string can be encoded, and `decode_bytes(encode(b)) == b`. Each byte that is not UTF-8 becomes one id,
    and the text between such bytes is encoded separately. A `str` with lone surrogates is encoded as its
    "surrogatepass" UTF-8 bytes. `encode` never returns special tokens. The tokenizer of a pretrained model may drop
    `missing_bytes` and normalize text (Qwen's NFC).

    Args:
        document: content of a `tokenizer.json`, from `tokenizer_json.new_document` or `read_document`.
        origin: where the tokenizer comes from, for messages.
        roles: the roles of its special tokens; None if it has the four tokens of `SPECIAL_TOKENS` or their aliases.
        config: content of `tokenizer_config.json`, including the chat template; None for the default.

    Attributes:
        special_tokens: name → id.
        end_of_text_id, padding_id, start_of_turn_id, end_of_turn_id: see `SpecialTokens`. Some may be equal.
        start_ids: ids that begin every text: end-of-text (our tokenizers), what a pretrained model expects, or none.
        stop_ids: ids that end a generated text.
        missing_bytes: bytes without a token.

    Example:

    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> tokenizer = byte_tokenizer()
    >>> tokenizer.encode("Hi!")
    array([ 72, 105,  33], dtype=int32)
    >>> tokenizer.decode([72, 105, 33])
    'Hi!'
    """

    def __init__(
        self,
        document: dict[str, Any],
        origin: str = "the tokenizer",
        roles: SpecialTokens | None = None,
        config: dict[str, Any] | None = None,
    ):
        self.document, self.origin, self.roles = document, origin, roles
        vocabulary: dict[str, int] = document["model"]["vocab"]
        added = {token["content"]: token["id"] for token in document["added_tokens"]}
        self.special_tokens = {token["content"]: token["id"] for token in document["added_tokens"] if token["special"]}
        if roles is None:
            names = special_token_names(document)
            end, padding, start_of_turn, end_of_turn = (names[name] for name in SPECIAL_TOKENS)
            roles = SpecialTokens(end, padding, start_of_turn, end_of_turn, start_of_text=end)
        self._assign_roles(roles, {**vocabulary, **self.special_tokens})
        self.config = config if config is not None else self._default_config()
        self.vocabulary_size = 1 + max(max(vocabulary.values()), max(added.values()))
        self._token_bytes = [b""] * self.vocabulary_size
        for token, identifier in vocabulary.items():
            if token not in added:
                self._token_bytes[identifier] = bytes(BYTE_OF_CHARACTER[character] for character in token)
        for name, identifier in added.items():
            if name not in self.special_tokens:
                self._token_bytes[identifier] = name.encode()
        self.id_of_byte = np.array([vocabulary.get(character, -1) for character in byte_alphabet()], np.int32)
        if self.padding not in self.special_tokens:  # The token of byte FF is the padding.
            self._token_bytes[self.padding_id] = b""
            self.id_of_byte[BYTE_OF_CHARACTER[LAST_BYTE]] = -1
        self.missing_bytes = [byte for byte, identifier in enumerate(self.id_of_byte) if identifier < 0]
        self._pools: dict[int, EncoderThreadPool] = {}
        self.merges: list[tuple[int, int, int]] = [
            (vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in merges_of(document)
        ]

    def _assign_roles(self, roles: SpecialTokens, ids: Mapping[str, int]) -> None:
        self.end_of_text, self.padding = roles.end_of_text, roles.padding
        self.start_of_turn, self.end_of_turn = roles.start_of_turn, roles.end_of_turn
        self.end_of_text_id, self.padding_id = ids[roles.end_of_text], ids[roles.padding]
        self.start_of_turn_id, self.end_of_turn_id = ids[roles.start_of_turn], ids[roles.end_of_turn]
        self.start_ids: tuple[int, ...] = () if roles.start_of_text is None else (ids[roles.start_of_text],)
        ends = dict.fromkeys([self.end_of_turn_id, self.end_of_text_id])
        self.stop_ids: tuple[int, ...] = (*ends, *(ids[name] for name in roles.more_ends))

    def _default_config(self) -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.end_of_text,
            "eos_token": self.end_of_text,
            "pad_token": self.padding,
            "additional_special_tokens": [self.start_of_turn, self.end_of_turn],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }

    def save(self, directory: str | os.PathLike, model_max_length: int | None = None) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` opens.

        If `config.json` has the `model_type` "qwen2", transformers 5 uses its own Qwen2 pre-tokenizer and normalizer.
        """
        config = dict(self.config)
        if self.roles is not None:
            config[KEY] = self.roles.to_dict()
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        write_text(Path(directory) / "tokenizer.json", self.to_json())
        write_json(Path(directory) / "tokenizer_config.json", config)

    def to_json(self) -> str:
        return json.dumps(self.document, ensure_ascii=False, indent=1) + "\n"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of `tokenizer.json` and the roles, independent of the layout of the file."""
        return sha256_of_json(self.document if self.roles is None else [self.document, self.roles.to_dict()])

    @functools.cached_property
    def in_graph_limitation(self) -> str | None:
        """The reason why `in_graph` does not support this tokenizer; None if it does."""
        reason = added_tokens_limitation(self.document)
        if reason or not self.merges:
            return reason
        if pre_tokenizers(self.document) != PRE_TOKENIZER["pretokenizers"] and pretrained_family(self.document) is None:
            return "its pre-tokenizer is not supported"
        if not rank_order_is_merge_order(self.merges):
            return "its merges are not in the order in which training finds them"
        return None

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """The fastest encoder that gives the ids of this tokenizer."""
        if self.document.get("normalizer") or any(not token["special"] for token in self.document["added_tokens"]):
            return ReferenceEncoder(self.document)
        if not self.merges:
            return BytesEncoder(self.id_of_byte)
        ranks = None
        if not self.missing_bytes and pre_tokenizers(self.document) == PRE_TOKENIZER["pretokenizers"]:
            ranks = tiktoken_ranks(self._token_bytes, self.merges, self.id_of_byte.tolist())
        return TiktokenEncoder(*ranks) if ranks else ReferenceEncoder(self.document)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Encodes a text to [n] int32 ids, read only."""
        return self._encode(self.encoder, text)

    def _encode(self, encoder: TextEncoder, text: str | bytes) -> np.ndarray:
        try:
            return encoder.encode(text if isinstance(text, str) else text.decode())
        except UnicodeError:
            content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        ids = []
        for number, part in enumerate(INVALID_BYTES.split(content.decode("utf-8", "surrogateescape"))):
            if number % 2:
                ids.append(ids_of_bytes(part.encode("utf-8", "surrogateescape"), self.id_of_byte))
            elif part:
                ids.append(encoder.encode(part))
        return np.concatenate(ids)

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """Encodes texts in parallel to [n] int32 ids each, read only."""
        if isinstance(self.encoder, ReferenceEncoder):
            return self._encode_many(self.encoder, texts)  # `tokenizers` starts its own threads.
        parts = ((number, part) for number, text in enumerate(texts) for part in split_text(text))
        jobs = list(batches_by_size(parts, PART_CHARACTERS, lambda part: len(part[1])))
        contents = [[text for _, text in job] for job in jobs]
        if len(jobs) == 1 or available_cpus() == 1:
            encoded = [self._encode_many(self.encoder, job) for job in contents]
        else:
            encoded = self._thread_pool().map(self._encode_many, contents)
        pieces: list[list[np.ndarray]] = [[] for _ in texts]
        for job, arrays in zip(jobs, encoded):
            for (number, _), ids in zip(job, arrays):
                pieces[number].append(ids)
        return [ids[0] if len(ids) == 1 else np.concatenate(ids) for ids in pieces]

    def _encode_many(self, encoder: TextEncoder, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        try:
            return encoder.encode_many([text if isinstance(text, str) else text.decode() for text in texts])
        except UnicodeError:
            return [self._encode(encoder, text) for text in texts]

    def _thread_pool(self) -> EncoderThreadPool:
        process = os.getpid()  # A forked child does not inherit the threads.
        if process not in self._pools:
            self._pools = {process: EncoderThreadPool(self.encoder, available_cpus())}
        return self._pools[process]

    def decode_bytes(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> bytes:
        """Decodes [n] ids to bytes, with or without names of special tokens; IndexError outside the vocabulary."""
        table = self._token_bytes if skip_special_tokens else self._token_bytes_with_names
        values = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if values.size and not (values.min() >= 0 and values.max() < self.vocabulary_size):
            raise IndexError(f"an id is outside the vocabulary of {self.vocabulary_size}")
        return b"".join([table[identifier] for identifier in values.tolist()])

    def decode(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Decodes ids to text. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    @functools.cached_property
    def _token_bytes_with_names(self) -> list[bytes]:
        table = list(self._token_bytes)
        for name, identifier in self.special_tokens.items():
            table[identifier] = name.encode()
        return table

    def token_bytes(self) -> list[bytes]:
        """Returns the bytes of each id; b"" for special tokens."""
        return list(self._token_bytes)

    def byte_lengths(self) -> np.ndarray:
        """Returns [vocabulary_size] int32, read only: the number of bytes of each id; 0 for special tokens."""
        return self._byte_lengths

    @functools.cached_property
    def _byte_lengths(self) -> np.ndarray:
        lengths = np.array([len(content) for content in self._token_bytes], np.int32)
        lengths.setflags(write=False)
        return lengths


def available_cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
