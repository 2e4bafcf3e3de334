"""The train/validation split of documents: by a hash, or at a position in the text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from tfgpt.corpus.sources.base import Document, content_texts

# The conditions of --split=auto for a hash split; otherwise it takes the contiguous one.
FEWEST_DOCUMENTS = 40
LARGEST_DEVIATION = 3.0


def hash_side(document: Document, validation_fraction: float) -> str:
    """Returns "train" or "validation" by a hash of the document's group.

    The side depends only on the group and the fraction: not on the order, the other documents or the run. A larger
    fraction holds out all documents that a smaller one does, and more.
    """
    return "validation" if hash_value(document) < validation_fraction * 2.0**64 else "train"


def hash_value(document: Document) -> int:
    """Returns a number below 2^64 from a document's group; a fraction holds out those below that share of 2^64."""
    digest = hashlib.sha256(b"tfgpt split\0" + split_group(document).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big")


def split_group(document: Document) -> str:
    """Returns the document's id up to the first "#", or the whole id; a hash split keeps a group together."""
    return document["id"].split("#", 1)[0] or document["id"]


def hash_split_problem(sides: Mapping[str, Mapping[str, Any]], validation_fraction: float) -> str | None:
    """Returns why a hash split into sides of these `documents` and `characters` is not a good one, or None."""
    count = sum(side["documents"] for side in sides.values())
    if count < FEWEST_DOCUMENTS:
        return f"{count} document{'s are' if count != 1 else ' is'} too few to split by hash"
    for name, side in sides.items():
        if not side["documents"]:
            return f"by hash the {name} side would be empty"
    share = sides["validation"]["characters"] / max(1, sum(side["characters"] for side in sides.values()))
    if not validation_fraction / LARGEST_DEVIATION <= share <= min(validation_fraction * LARGEST_DEVIATION, 0.95):
        return f"by hash {share:.1%} of the text would be held out, {validation_fraction:.1%} is asked for"
    return None


def num_characters(document: Document) -> int:
    """Returns the number of characters (Unicode code points) of text in a document."""
    return sum(len(text) for text in content_texts(document))


def contiguous_cut(total_characters: int, validation_fraction: float) -> int:
    """Returns the number of characters before the validation side: `int(n * 0.9)` for a fraction of 0.1.

    Source: nanoGPT, data/shakespeare_char/prepare.py (`data[:int(n*0.9)]` of a Python string).
    """
    return int(total_characters * (1.0 - validation_fraction))


def contiguous_sides(document: Document, start: int, cut: int) -> Iterator[tuple[str, Document]]:
    """Yields the side of a document that starts at character `start` of the whole text.

    A text across the cut is divided there, to the character; a dialogue across the cut is in validation.
    """
    end = start + num_characters(document)
    if end <= cut:
        yield "train", document
    elif start >= cut or "text" not in document:
        yield "validation", document
    else:
        text = document["text"]
        yield "train", {**document, "text": text[: cut - start], "id": f"{document['id']}#train"}
        yield "validation", {**document, "text": text[cut - start :], "id": f"{document['id']}#validation"}
