"""`Tokenizer`: one `tokenizer.json`, text or bytes to ids and back, without loss and the same in every encoder."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfgpt.common.adapters import base_directory, is_adapter
from tfgpt.common.atomic_files import read_json, sha256_of_json, write_json, write_text
from tfgpt.common.errors import UserError
from tfgpt.tokenization.chat_template import CHAT_TEMPLATE
from tfgpt.tokenization.config import SPECIAL_TOKENS
from tfgpt.tokenization.encoders import (
    BytesEncoder,
    EncoderThreadPool,
    ReferenceEncoder,
    TextEncoder,
    TiktokenEncoder,
    ids_of_bytes,
    tiktoken_ranks,
)
from tfgpt.tokenization.pretokenizer import BYTE_OF_CHARACTER, PRE_TOKENIZER, byte_alphabet
from tfgpt.tokenization.special_tokens import KEY, LAST_BYTE, SpecialTokens
from tfgpt.tokenization.tokenizer_json import (
    family_of,
    in_order,
    merges_of,
    pre_tokenizers,
    read_document,
    special_token_names,
    why_not_found,
)

INVALID_BYTES = re.compile("[\udc80-\udcff]+")
"""Bytes that are not UTF-8, as Python's `surrogateescape` spells them."""

SAFE_CUT = re.compile(
    "(?<=[0-9A-Za-zぁ-ゖァ-ヺ一-鿿가-힣!-/])(?=[ \n])|(?<=[A-Za-zぁ-ゖァ-ヺ一-鿿가-힣])(?=[!-/。，、；：？！])"
)
"""Places where our expression cuts whatever stands around: before white space that follows something else, and between
a letter and a sign. A long text may be cut there and its parts encoded side by side. (Not every such place is found:
only ones whose characters no version of Unicode classes otherwise.)"""

PART_CHARACTERS = 1 << 18
"""Characters that one thread encodes at a time."""


class Tokenizer:
    """A byte-level BPE tokenizer.

    Any byte string can be encoded, and `decode_bytes(encode(b)) == b`. Bytes that are not UTF-8 become one id each;
    the text between them is encoded as if it stood alone. A `str` with lone surrogates stands for its bytes in
    "surrogatepass" UTF-8. Special tokens never come out of `encode`, whatever the text says.

    A pretrained model's tokenizer may be less careful, and is left as it is: `missing_bytes` are dropped, and a
    normalizer (Qwen's NFC) may write text in another way before it is encoded.

    Args:
        document: the content of a `tokenizer.json`, as `tokenizer_json.new_document` or `read_document` give it.
        origin: what messages call it, such as its path.
        roles: the parts that its tokens play; None: it has the four special tokens of ours, under some name.
        config: the content of `tokenizer_config.json` that goes with it, chat template and all; None: as ours.

    Attributes:
        special_tokens: name → id.
        end_of_text_id, padding_id, start_of_turn_id, end_of_turn_id: see `roles`. Two of them may be the same.
        start_ids: the ids that every text begins with: the end-of-text token in front of it (ours), what a pretrained
            model expects, or nothing.
        stop_ids: the ids that end a generated text.
        missing_bytes: bytes that have no token.
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
        self._assign(roles, {**vocabulary, **self.special_tokens})
        self.config = config if config is not None else self.own_config()
        self.vocabulary_size = 1 + max(max(vocabulary.values()), max(added.values()))
        self._token_bytes = [b""] * self.vocabulary_size
        for token, identifier in vocabulary.items():
            if token not in added:
                self._token_bytes[identifier] = bytes(BYTE_OF_CHARACTER[character] for character in token)
        for name, identifier in added.items():
            if name not in self.special_tokens:
                self._token_bytes[identifier] = name.encode()
        self.id_of_byte = np.array([vocabulary.get(character, -1) for character in byte_alphabet()], np.int32)
        if self.padding not in self.special_tokens:  # The byte FF gives its token up.
            self._token_bytes[self.padding_id] = b""
            self.id_of_byte[BYTE_OF_CHARACTER[LAST_BYTE]] = -1
        self.missing_bytes = [byte for byte, identifier in enumerate(self.id_of_byte) if identifier < 0]
        self._workers_of: dict[int, EncoderThreadPool] = {}
        self.merges: list[tuple[int, int, int]] = [
            (vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in merges_of(document)
        ]

    def _assign(self, roles: SpecialTokens, ids: Mapping[str, int]) -> None:
        """Takes the parts of the tokens over; a KeyError names one that is not there."""
        self.end_of_text, self.padding = roles.end_of_text, roles.padding
        self.start_of_turn, self.end_of_turn = roles.start_of_turn, roles.end_of_turn
        self.end_of_text_id, self.padding_id, self.start_of_turn_id, self.end_of_turn_id = (
            ids[name] for name in (roles.end_of_text, roles.padding, roles.start_of_turn, roles.end_of_turn)
        )
        self.start_ids: tuple[int, ...] = () if roles.start_of_text is None else (ids[roles.start_of_text],)
        ends = dict.fromkeys([self.end_of_turn_id, self.end_of_text_id])
        self.stop_ids: tuple[int, ...] = (*ends, *(ids[name] for name in roles.more_ends))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Reads a `tokenizer.json`, or a directory's, or the SentencePiece model in one.

        An adapter has its base's, a run its model's.

        Where a `tokenizer_config.json` that `convert` wrote stands beside it, nothing is added to its vocabulary. The
        chat template of the directory (`chat_template.jinja`, or the one in `tokenizer_config.json`) is its template.

        Raises:
            UserError: the file is missing, damaged or not a lossless byte-level BPE tokenizer.
        """
        path = Path(path).expanduser()
        if (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
            path = path / "model"
        if is_adapter(path) and not (path / "tokenizer.json").is_file():
            path = base_directory(path)
        if (path / "tokenizer.model").is_file():
            from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer

            return SentencePieceTokenizer.load(path)
        beside = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
        config = read_json(beside) if beside.is_file() else {}
        config = config if isinstance(config, dict) else {}
        template_file = beside.with_name("chat_template.jinja")
        if template_file.is_file():
            config["chat_template"] = template_file.read_text(encoding="utf-8-sig")
        if KEY not in config:
            made = cls(read_document(path), str(path))
            for name in ("chat_template", "bos_token", "eos_token"):
                if config.get("chat_template") and config.get(name):
                    made.config[name] = config[name]
            return made
        document = read_document(path, complete=False)
        try:
            return cls(document, str(path), SpecialTokens.from_dict(config.pop(KEY)), config)
        except (TypeError, KeyError) as error:
            raise UserError(f"{beside}: {KEY}: does not fit {path} ({error})") from error

    def own_config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says of a tokenizer of ours."""
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

        One trap lies outside these files: beside a `config.json` whose `model_type` is "qwen2", transformers 5 takes
        its own Qwen2 pre-tokenizer and normalizer whatever `tokenizer.json` says. (gpt2, llama, mistral and qwen3 are
        fine.)

        Args:
            directory: made when missing; other files in it stay.
            model_max_length: the longest sequence of the model that it goes with, in tokens.
        """
        config = dict(self.config)
        if self.roles is not None:
            config[KEY] = self.roles.to_dict()
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        write_text(Path(directory) / "tokenizer.json", self.to_json())
        write_json(Path(directory) / "tokenizer_config.json", config)

    def to_json(self) -> str:
        """The text of `tokenizer.json`; `tokenizers.Tokenizer.from_str` reads it."""
        return json.dumps(self.document, ensure_ascii=False, indent=1) + "\n"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of `tokenizer.json` (and of what parts its tokens play), independent of its layout."""
        return sha256_of_json(self.document if self.roles is None else [self.document, self.roles.to_dict()])

    @functools.cached_property
    def _tiktoken_ranks(self) -> tuple[dict[bytes, int], np.ndarray] | None:
        return tiktoken_ranks(self._token_bytes, self.merges, self.id_of_byte.tolist())

    @functools.cached_property
    def why_reference_only(self) -> str | None:
        """Why only `tokenizers` itself gives this tokenizer's ids; None when tiktoken and the graph do as well."""
        if any(not token["special"] for token in self.document["added_tokens"]):
            return "it looks for added tokens in the text"
        if self.document.get("normalizer"):
            return "it writes text in another way before encoding it"
        if not self.merges:
            return None
        if self.missing_bytes:
            return "some bytes have no token"
        if pre_tokenizers(self.document) != PRE_TOKENIZER["pretokenizers"]:
            return "its pre-tokenizer is not the one of tokenizers that tfgpt trains"
        if self._tiktoken_ranks is None:
            return "its merges are not in the order in which training finds them"
        return None

    @functools.cached_property
    def why_not_in_graph(self) -> str | None:
        """Why `in_graph` cannot give this tokenizer's ids; None when it can."""
        reason = why_not_found(self.document)
        if reason:
            return reason
        if self.document.get("normalizer") not in (None, {"type": "NFC"}):
            return "it writes text in another way before encoding it"
        if not self.merges:
            return None
        if pre_tokenizers(self.document) != PRE_TOKENIZER["pretokenizers"] and family_of(self.document) is None:
            return "its pre-tokenizer is not one that is known"
        if not in_order(self.merges):
            return "its merges are not in the order in which training finds them"
        return None

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """What encodes valid text in bulk."""
        if self.why_reference_only:
            return ReferenceEncoder(self.document)
        if self._tiktoken_ranks is None or not self.merges:
            return BytesEncoder(self.id_of_byte)
        return TiktokenEncoder(*self._tiktoken_ranks)

    def encode(self, text: str | bytes) -> np.ndarray:
        """The ids of one text.

        Returns:
            [n] int32; read only.
        """
        return self._encode(self.encoder, text)

    def _encode(self, encoder: TextEncoder, text: str | bytes) -> np.ndarray:
        try:
            return encoder.encode(text if isinstance(text, str) else text.decode())
        except UnicodeError:
            return self._encode_broken(encoder, text)

    def _encode_broken(self, encoder: TextEncoder, text: str | bytes) -> np.ndarray:
        """Ids of text with bytes that are not UTF-8, or with lone surrogates."""
        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        escaped = content.decode("utf-8", "surrogateescape")
        parts, position = [], 0
        for match in INVALID_BYTES.finditer(escaped):
            if match.start() > position:
                parts.append(encoder.encode(escaped[position : match.start()]))
            invalid = ids_of_bytes(match.group().encode("utf-8", "surrogateescape"), self.id_of_byte)
            parts.append(invalid)
            position = match.end()
        if position < len(escaped):
            parts.append(encoder.encode(escaped[position:]))
        return np.concatenate(parts)

    def encode_batch(self, texts: Sequence[str | bytes], num_threads: int | None = None) -> list[np.ndarray]:
        """The ids of many texts, encoded in parallel.

        Args:
            texts: the texts; one very long text is cut at places that do not change its ids.
            num_threads: threads to use; None for one a CPU that this process may use.

        Returns:
            For each text [n] int32; read only.
        """
        if isinstance(self.encoder, ReferenceEncoder):
            return self._encode_portion(self.encoder, texts)  # it has threads of its own
        jobs = list(portions(part for number, text in enumerate(texts) for part in numbered_parts(number, text)))
        contents = [[text for _, text in job] for job in jobs]
        threads = num_threads or available_cpus()
        if threads == 1 or len(jobs) == 1:
            encoded = [self._encode_portion(self.encoder, portion) for portion in contents]
        elif num_threads is None:
            encoded = self._workers(threads).map(self._encode_portion, contents)
        else:
            with contextlib.closing(EncoderThreadPool(self.encoder, threads)) as workers:
                encoded = workers.map(self._encode_portion, contents)
        pieces: list[list[np.ndarray]] = [[] for _ in texts]
        for job, arrays in zip(jobs, encoded):
            for (number, _), ids in zip(job, arrays):
                pieces[number].append(ids)
        return [ids[0] if len(ids) == 1 else np.concatenate(ids) for ids in pieces]

    def _encode_portion(self, encoder: TextEncoder, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """Texts in one call where all are valid, otherwise one by one."""
        try:
            return encoder.encode_many([text if isinstance(text, str) else text.decode() for text in texts])
        except UnicodeError:
            return [self._encode(encoder, text) for text in texts]

    def _workers(self, count: int) -> EncoderThreadPool:
        """The threads of this process, which end with the tokenizer; a forked child has none of its parent's."""
        process = os.getpid()
        if process not in self._workers_of:
            self._workers_of = {process: EncoderThreadPool(self.encoder, count)}
        return self._workers_of[process]

    def decode_bytes(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> bytes:
        """The bytes that the ids stand for.

        Args:
            ids: [n] integers.
            skip_special_tokens: leave special tokens out; otherwise their names are written.

        Raises:
            IndexError: an id outside the vocabulary.
        """
        table = self._token_bytes if skip_special_tokens else self._token_bytes_with_names
        values = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if values.size and not (values.min() >= 0 and values.max() < self.vocabulary_size):
            raise IndexError(f"an id is outside the vocabulary of {self.vocabulary_size}")
        return b"".join([table[identifier] for identifier in values.tolist()])

    def decode(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """The text that the ids stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    @functools.cached_property
    def _token_bytes_with_names(self) -> list[bytes]:
        table = list(self._token_bytes)
        for name, identifier in self.special_tokens.items():
            table[identifier] = name.encode()
        return table

    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; b"" for special tokens."""
        return list(self._token_bytes)

    def byte_lengths(self) -> np.ndarray:
        """[vocabulary_size] int32, read only: bytes that each id stands for; 0 for special tokens."""
        return self._byte_lengths

    @functools.cached_property
    def _byte_lengths(self) -> np.ndarray:
        lengths = np.array([len(content) for content in self._token_bytes], np.int32)
        lengths.setflags(write=False)
        return lengths


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def numbered_parts(number: int, text: str | bytes) -> Iterator[tuple[int, str | bytes]]:
    """A text in parts of about PART_CHARACTERS, cut only where its ids do not change; `number` marks each part."""
    if len(text) < 2 * PART_CHARACTERS:
        yield number, text
        return
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            yield number, text
            return
    start = 0
    while start < len(text):
        cut = SAFE_CUT.search(text, start + PART_CHARACTERS) if len(text) - start > PART_CHARACTERS else None
        end = cut.start() if cut else len(text)
        yield number, text[start:end]
        start = end


def portions(parts: Iterable[tuple[int, str | bytes]]) -> Iterator[list[tuple[int, str | bytes]]]:
    """Consecutive parts in lists of about PART_CHARACTERS: so many that starting a thread's job costs little."""
    portion: list[tuple[int, str | bytes]] = []
    length = 0
    for part in parts:
        portion.append(part)
        length += len(part[1])
        if length >= PART_CHARACTERS:
            yield portion
            portion, length = [], 0
    if portion:
        yield portion
