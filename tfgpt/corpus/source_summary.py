"""What a reading of text came to, in a sentence: every refusal of a corpus ends with it."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any


def summarize_sources(
    sources: Sequence[Mapping[str, Any]], sides: Mapping[str, Mapping[str, Any]] | None, split: str
) -> str:
    """What was read, what was left out and why, and what is left.

    Args:
        sources: "documents" kept and "dropped" by reason of each source.
        sides: "documents" and "bytes" of "train" and "validation"; None leaves out what is left.
        split: how the sides were made; "none" has one only.
    """
    dropped: collections.Counter[str] = collections.Counter()
    for source in sources:
        dropped.update(source["dropped"])
    read = sum(source["documents"] for source in sources) + dropped.total()
    left_out = f", {describe_dropped(dropped)}" if dropped else ""
    words = {"train": "left"} if split == "none" else {"train": "to train on", "validation": "held out"}
    left = [
        f"{format_count(sides[side]['documents'], 'document')} ({format_count(sides[side]['bytes'], 'byte')}) {what}"
        for side, what in words.items()
        if sides
    ]
    return f"{format_count(read, 'document')} read{left_out}{'; ' if left else ''}{', '.join(left)}"


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """How many documents were left out, and why."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
    return f"{sum(dropped.values()):,} left out ({reasons})"


def format_count(count: int, what: str) -> str:
    """ "1 document", "2,000 documents"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
