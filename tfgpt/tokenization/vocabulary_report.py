"""A report on how well a vocabulary fits a text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tfgpt.tokenization.encoders import batches_by_size
from tfgpt.tokenization.tokenizer import Tokenizer


def vocabulary_report(tokenizer: Tokenizer, texts: Iterable[str], longest: int = 10) -> list[str]:
    """Returns one line for each statistic of a tokenizer on texts, which are read once, a few megabytes at a time."""
    counts = np.zeros(tokenizer.vocabulary_size, np.int64)
    documents = characters = 0
    for batch in batches_by_size(texts, 1 << 22, len):
        documents += len(batch)
        characters += sum(map(len, batch))
        for ids in tokenizer.encode_batch(batch):
            counts += np.bincount(ids, minlength=len(counts))
    lengths = tokenizer.byte_lengths().astype(np.int64)
    tokens, length = int(counts.sum()), int((counts * lengths).sum())
    ordinary = int((lengths > 0).sum())  # without special tokens
    unused = int(((lengths > 0) & (counts == 0)).sum())
    merged = int((counts * lengths)[lengths > 1].sum())
    most = int(np.searchsorted(np.cumsum(np.sort(counts)[::-1]), 0.9 * tokens)) + 1 if tokens else 0
    contents = tokenizer.token_bytes()
    names = [contents[index].decode("utf-8", "replace") for index in np.argsort(-lengths, kind="stable")[:longest]]
    return [
        f"vocabulary          {tokenizer.vocabulary_size:,} ids",
        f"text                {documents:,} documents, {length:,} bytes, {tokens:,} tokens "
        f"({tokens / max(documents, 1):.1f} a document)",
        f"bytes per token     {length / max(tokens, 1):.3f} ({characters / max(tokens, 1):.3f} characters)",
        f"unused ids          {unused:,} of {ordinary:,} ({unused / ordinary:.1%})",
        f"bytes in merges     {merged / max(length, 1):.1%}",
        f"90% of the tokens   are {most:,} ids",
        "longest tokens      " + " ".join(map(repr, names)),
    ]
