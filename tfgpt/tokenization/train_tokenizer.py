"""Where a tokenizer comes from: trained byte-level BPE, the bytes themselves, or a file; and a report on it."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from tfgpt.common.errors import SettingError, UserError
from tfgpt.tokenization.config import SMALLEST_VOCABULARY, SPECIAL_TOKENS, TokenizerConfig
from tfgpt.tokenization.pretokenizer import BYTE_OF_CHARACTER
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import merges_of, new_document


def print_note(line: str) -> None:
    """Prints one line for the person at the keyboard."""
    print(line, file=sys.stderr, flush=True)


def make_tokenizer(
    config: TokenizerConfig,
    texts: Iterable[str],
    *,
    total_bytes: int | None = None,
    note: Callable[[str], None] = print_note,
) -> Tokenizer:
    """The tokenizer that the settings ask for.

    Args:
        config: the settings.
        texts: the training text; read only when a tokenizer is trained.
        total_bytes: bytes of all `texts`, when known (see `train_bpe`).
        note: told, in one line, what turned out differently than asked.

    Raises:
        UserError: the file of `--tokenizer` cannot be used, or there is no text to train on.
    """
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    if config.tokenizer != "bpe":
        return Tokenizer.load(config.tokenizer)
    return train_bpe(
        texts, config.vocabulary_size, sample_bytes=config.tokenizer_sample_bytes, total_bytes=total_bytes, note=note
    )


def byte_tokenizer() -> Tokenizer:
    """The tokenizer without merges: ids 0…255 are the bytes, then the special tokens."""
    return Tokenizer(new_document([]))


def train_bpe(
    texts: Iterable[str],
    vocabulary_size: int,
    *,
    sample_bytes: int | None = None,
    total_bytes: int | None = None,
    note: Callable[[str], None] = print_note,
) -> Tokenizer:
    """Trains byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with `tokenizers`.

    The same texts in the same order give the same tokenizer. Pairs that occur once are not merged. Texts are read
    one by one; memory holds the distinct pre-tokens and their counts, not the texts.

    Args:
        texts: the training text.
        vocabulary_size: entries in all: 256 bytes, the merges, the special tokens.
        sample_bytes: at most about so many bytes are used; None for all.
        total_bytes: bytes of all texts. When known, the sample is spread over the whole; otherwise it is the
            beginning.
        note: told, in one line, when the text allows fewer entries than asked for.

    Returns:
        A tokenizer; its vocabulary is smaller than asked for when the text has no more pairs that occur twice.

    Raises:
        SettingError: the vocabulary is too small for the bytes and the special tokens.
        UserError: the texts are empty.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise SettingError(
            "vocabulary_size",
            f"{vocabulary_size} is below {SMALLEST_VOCABULARY}: 256 bytes and {len(SPECIAL_TOKENS)} special tokens",
        )
    sample = Sample(texts, sample_bytes, total_bytes)
    # Our own document gives the pre-tokenizer, so training cuts text exactly as encoding will.
    trainee = tokenizers.Tokenizer(BPE())
    trainee.pre_tokenizer = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json()).pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocabulary_size - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    trainee.train_from_iterator(iter(sample), trainer=trainer)
    if sample.bytes_used == 0:
        raise UserError("there is no text to train the tokenizer on; give some, or use --tokenizer=bytes")
    merges = merges_of(json.loads(trainee.to_str()))
    tokenizer = Tokenizer(new_document((in_bytes(left), in_bytes(right)) for left, right in merges))
    if tokenizer.vocabulary_size < vocabulary_size:
        note(
            f"tokenizer: {sample.bytes_used:,} bytes of text give a vocabulary of {tokenizer.vocabulary_size:,}, "
            f"not {vocabulary_size:,}: no further pair occurs twice"
        )
    return tokenizer


class Sample:
    """The text that a tokenizer is trained on: all, a part spread evenly, or the beginning.

    The spread part is made of slices (short texts are one slice, a book is many). Whether a slice belongs to it
    depends on its content only (a checksum), so the same corpus gives the same sample.
    """

    def __init__(self, texts: Iterable[str], sample_bytes: int | None, total_bytes: int | None):
        self.texts, self.sample_bytes, self.bytes_used = texts, sample_bytes, 0
        self.share, self.slice_characters = 1.0, 1 << 16
        if sample_bytes is not None and total_bytes is not None and total_bytes > sample_bytes:
            self.share = sample_bytes / total_bytes
            self.slice_characters = max(1, min(1 << 16, sample_bytes // 100))

    def __iter__(self) -> Iterator[str]:
        for content in self.slices():
            if self.share < 1 and zlib.crc32(content) >= self.share * 2**32:
                continue
            if self.sample_bytes is not None:
                content = content[: self.sample_bytes - self.bytes_used]
            self.bytes_used += len(content)
            yield content.decode("utf-8", "ignore")
            if self.bytes_used == self.sample_bytes:
                return

    def slices(self) -> Iterator[bytes]:
        """The texts cut to pieces; lone surrogates, over which no encoder merges, are left out."""
        for text in self.texts:
            step = self.slice_characters if self.share < 1 else max(len(text), 1)
            for start in range(0, len(text), step):
                yield text[start : start + step].encode("utf-8", "ignore")


def in_bytes(token: str) -> bytes:
    """A token of the byte alphabet as the bytes it stands for."""
    return bytes(BYTE_OF_CHARACTER[character] for character in token)


def vocabulary_report(tokenizer: Tokenizer, texts: Iterable[str], longest: int = 10) -> dict[str, Any]:
    """How well a vocabulary fits a text.

    Args:
        tokenizer: the tokenizer.
        texts: the texts to measure on, such as the validation documents; read once, a few megabytes at a time.
        longest: how many of the longest tokens to list.

    Returns:
        A dictionary of plain JSON values: `vocabulary_size`, `documents`, `bytes`, `characters`, `tokens`,
        `bytes_per_token`, `characters_per_token`, `tokens_per_document`, `used_ids`, `unused_ids` (both without the
        special tokens), `unused_share`, `merged_byte_share` (bytes inside tokens of two bytes or more),
        `ids_for_90_percent` (how few ids make up 90% of the tokens) and `longest_tokens`.
    """
    counts = np.zeros(tokenizer.vocabulary_size, np.int64)
    documents = characters = 0
    for batch in batches_of_texts(texts):
        documents += len(batch)
        characters += sum(map(len, batch))
        for ids in tokenizer.encode_batch(batch):
            counts += np.bincount(ids, minlength=len(counts))
    lengths = tokenizer.byte_lengths().astype(np.int64)
    tokens, length = int(counts.sum()), int((counts * lengths).sum())
    ordinary = lengths > 0
    unused = int((ordinary & (counts == 0)).sum())
    descending = np.sort(counts)[::-1]
    contents = tokenizer.token_bytes()
    by_length = np.argsort(-lengths, kind="stable")[:longest]
    return {
        "vocabulary_size": tokenizer.vocabulary_size,
        "documents": documents,
        "bytes": length,
        "characters": characters,
        "tokens": tokens,
        "bytes_per_token": length / max(tokens, 1),
        "characters_per_token": characters / max(tokens, 1),
        "tokens_per_document": tokens / max(documents, 1),
        "used_ids": int(ordinary.sum()) - unused,
        "unused_ids": unused,
        "unused_share": unused / int(ordinary.sum()),
        "merged_byte_share": int((counts * lengths)[lengths > 1].sum()) / max(length, 1),
        "ids_for_90_percent": int(np.searchsorted(np.cumsum(descending), 0.9 * tokens)) + 1 if tokens else 0,
        "longest_tokens": [contents[identifier].decode("utf-8", "replace") for identifier in by_length],
    }


def batches_of_texts(texts: Iterable[str], characters: int = 1 << 22) -> Iterator[list[str]]:
    """Consecutive texts in lists of about so many characters."""
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= characters:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report of `vocabulary_report` for people, a line a fact."""
    ordinary = report["used_ids"] + report["unused_ids"]
    return [
        f"vocabulary          {report['vocabulary_size']:,} ids",
        f"text                {report['documents']:,} documents, {report['bytes']:,} bytes, "
        f"{report['tokens']:,} tokens ({report['tokens_per_document']:.1f} a document)",
        f"bytes per token     {report['bytes_per_token']:.3f} ({report['characters_per_token']:.3f} characters)",
        f"unused ids          {report['unused_ids']:,} of {ordinary:,} ({report['unused_share']:.1%})",
        f"bytes in merges     {report['merged_byte_share']:.1%}",
        f"90% of the tokens   are {report['ids_for_90_percent']:,} ids",
        "longest tokens      " + " ".join(repr(token) for token in report["longest_tokens"]),
    ]
