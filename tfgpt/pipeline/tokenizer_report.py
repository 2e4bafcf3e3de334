"""What the prepared data look like, for people: how the tokenizer fits the text, how long documents are."""

from __future__ import annotations

from collections.abc import Iterator

from tfgpt.corpus.document_shards import DocumentShards
from tfgpt.corpus.sources.base import content_texts
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.tokenization.vocabulary_report import vocabulary_report

# So much text is encoded for the report; more would not change its figures.
REPORT_CHARACTERS = 5_000_000


def report_of(data: PreparedData) -> list[str]:
    """Lines about the vocabulary, measured on held-out documents (on training documents when nothing is held out)."""
    side = "validation" if data.documents.num_documents("validation") else "train"
    name = {"validation": "held-out", "train": "training"}[side]
    lines = vocabulary_report(data.tokenizer, some_texts(data.documents, side))
    return [f"Tokenizer on {name} text:", *(f"  {line}" for line in lines)]


def some_texts(documents: DocumentShards, side: str) -> Iterator[str]:
    """The first texts of a side, about REPORT_CHARACTERS in all; a longer text is cut."""
    left = REPORT_CHARACTERS
    for document in documents.documents(side):
        for text in content_texts(document):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return
