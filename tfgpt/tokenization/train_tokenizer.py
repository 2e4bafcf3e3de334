"""Training of byte-level BPE tokenizers."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from tfgpt.common.errors import SettingError, UserError
from tfgpt.tokenization.config import SMALLEST_VOCABULARY, TokenizerConfig
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.pretokenizer import BYTE_OF_CHARACTER
from tfgpt.tokenization.special_tokens import SPECIAL_TOKENS
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import merges_of, new_document


def print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def make_tokenizer(
    config: TokenizerConfig,
    texts: Iterable[str],
    *,
    total_bytes: int | None = None,
    log: Callable[[str], None] = print_to_stderr,
) -> Tokenizer:
    """Loads or trains the tokenizer that the settings describe; the other arguments are those of `train_bpe`."""
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    if config.tokenizer != "bpe":
        return load_tokenizer(config.tokenizer)
    sample_bytes = config.tokenizer_sample_bytes
    return train_bpe(texts, config.vocabulary_size, sample_bytes=sample_bytes, total_bytes=total_bytes, log=log)


def byte_tokenizer() -> Tokenizer:
    """Returns the tokenizer without merges: ids 0 to 255 are the bytes, followed by the special tokens."""
    return Tokenizer(new_document([]))


def train_bpe(
    texts: Iterable[str],
    vocabulary_size: int,
    *,
    sample_bytes: int | None = None,
    total_bytes: int | None = None,
    log: Callable[[str], None] = print_to_stderr,
) -> Tokenizer:
    """Trains byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with `tokenizers`.

    The same texts in the same order give the same tokenizer. Pairs that occur once are not merged. Texts are read one
    at a time; memory holds the distinct pre-tokens and their counts.

    Args:
        vocabulary_size: number of entries, including the 256 bytes and the special tokens.
        sample_bytes: largest number of bytes to train on; None for all.
        total_bytes: bytes of all texts, if known. The sample is then spread over all texts; otherwise it is their
            beginning.
        log: receives one line if the vocabulary is smaller than `vocabulary_size` because no further pair occurs twice.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise SettingError(
            "vocabulary_size",
            f"{vocabulary_size} is below {SMALLEST_VOCABULARY}: 256 bytes and {len(SPECIAL_TOKENS)} special tokens",
        )
    sample = TrainingSample(texts, sample_bytes, total_bytes)
    # The pre-tokenizer of our own document, so that training cuts text exactly as encoding does.
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
        log(
            f"tokenizer: {sample.bytes_used:,} bytes of text give a vocabulary of {tokenizer.vocabulary_size:,}, "
            f"not {vocabulary_size:,}: no further pair occurs twice"
        )
    return tokenizer


class TrainingSample:
    """Text to train a tokenizer on: all texts, slices spread evenly over them, or their beginning.

    Whether a slice is taken depends only on its content (a checksum), so the same corpus gives the same sample. Short
    texts are one slice each.
    """

    def __init__(self, texts: Iterable[str], sample_bytes: int | None, total_bytes: int | None):
        self.texts, self.sample_bytes, self.bytes_used = texts, sample_bytes, 0
        self.share, self.slice_characters = 1.0, 1 << 16
        if sample_bytes is not None and total_bytes is not None and total_bytes > sample_bytes:
            self.share = sample_bytes / total_bytes
            self.slice_characters = max(1, min(1 << 16, sample_bytes // 100))

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            step = self.slice_characters if self.share < 1 else max(len(text), 1)
            for start in range(0, len(text), step):
                # Lone surrogates are left out; encoders do not merge across them.
                content = text[start : start + step].encode("utf-8", "ignore")
                if self.share < 1 and zlib.crc32(content) >= self.share * 2**32:
                    continue
                if self.sample_bytes is not None:
                    content = content[: self.sample_bytes - self.bytes_used]
                self.bytes_used += len(content)
                yield content.decode("utf-8", "ignore")
                if self.bytes_used == self.sample_bytes:
                    return


def in_bytes(token: str) -> bytes:
    return bytes(BYTE_OF_CHARACTER[character] for character in token)
