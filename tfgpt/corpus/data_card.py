"""The data card of a corpus: its sources, sizes and examples, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfgpt.corpus.sources.base import Document, message_text

EXAMPLE_CHARACTERS = 300


def data_card(manifest: dict[str, Any], examples: Sequence[Document]) -> str:
    """Returns the text of `card.md` from the manifest; shows the beginnings of a few training documents."""
    fraction = manifest["options"]["validation_fraction"]
    split = {
        "hash": f"By a hash of each document (or of its group); share asked for: {fraction}.",
        "contiguous": f"The last {fraction} of the text, in order, is the validation side.",
        "files": "The validation side is all of --validation_text.",
        "none": "Nothing is held out.",
    }[manifest["split"]["used"]]
    note = manifest["split"]["note"]
    lines = ["# Data card", "", "## Sources", "", "| source | used for | what | documents | licence |"]
    lines.append("| --- | --- | --- | ---: | --- |")
    for source in manifest["sources"]:
        cells = [f"`{source['spec']}`", source["of"], source["what"], f"{source['documents']:,}", source["licence"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Sizes", "", "| side | documents | characters | bytes |", "| --- | ---: | ---: | ---: |"]
    for name, side in manifest["sides"].items():
        lines.append(f"| {name} | {side['documents']:,} | {side['characters']:,} | {side['bytes']:,} |")
    lines += ["", "## Split", "", f"{split} ({note})" if note else split, "", "## Left out", ""]
    lines += [f"- {reason}: {count:,}" for reason, count in manifest["dropped"].items()] or ["Nothing."]
    if not manifest["options"]["deduplicate"]:
        lines.append("Duplicates were not looked for.")
    lines += ["", "## Examples (cut short)", ""]
    for document in examples:
        messages = document.get("messages", ())
        dialogue = "\n".join(f"{message['role']}: {message_text(message)}" for message in messages)
        text = document.get("text", dialogue).strip().replace("~~~~", "~~~ ")
        lines += ["~~~~text", text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + "…", "~~~~", ""]
    return "\n".join(lines)
