"""The data card: what the documents are made from, in Markdown for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfgpt.corpus.sources.base import Document, message_text

EXAMPLE_CHARACTERS = 300


def data_card(manifest: dict[str, Any], examples: Sequence[Document]) -> str:
    """The text of `card.md`.

    Args:
        manifest: the manifest of a document set.
        examples: a few training documents, shown cut short.
    """
    lines = ["# Data card", "", "## Sources", "", "| source | used for | what | documents | licence |"]
    lines.append("| --- | --- | --- | ---: | --- |")
    for source in manifest["sources"]:
        cells = [f"`{source['spec']}`", source["of"], source["what"], f"{source['documents']:,}", source["licence"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Sizes", "", "| side | documents | characters | bytes |", "| --- | ---: | ---: | ---: |"]
    for name, side in manifest["sides"].items():
        lines.append(f"| {name} | {side['documents']:,} | {side['characters']:,} | {side['bytes']:,} |")
    lines += ["", "## Split", "", split_words(manifest), "", "## Left out", ""]
    lines += [f"- {reason}: {count:,}" for reason, count in manifest["dropped"].items()] or ["Nothing."]
    if not manifest["options"]["deduplicate"]:
        lines.append("Duplicates were not looked for.")
    lines += ["", "## Examples (cut short)", ""]
    for document in examples:
        lines += ["~~~~text", shortened(document), "~~~~", ""]
    return "\n".join(lines)


def split_words(manifest: dict[str, Any]) -> str:
    """How the sides were made, in a sentence."""
    fraction = manifest["options"]["validation_fraction"]
    words = {
        "hash": f"By a hash of each document (or what belongs together); share asked for: {fraction}.",
        "contiguous": f"The last {fraction} of the text, in order, is the validation side.",
        "files": "The validation side is --validation_text, whole.",
        "none": "Nothing is held out.",
    }
    note = manifest["split"]["note"]
    return words[manifest["split"]["used"]] + (f" ({note})" if note else "")


def shortened(document: Document) -> str:
    """The start of a document; a dialogue as `role: content` lines."""
    if "text" in document:
        text = document["text"]
    else:
        text = "\n".join(f"{message['role']}: {message_text(message)}" for message in document["messages"])
    text = text.strip().replace("~~~~", "~~~ ")
    return text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + "…"
