"""Rows of a batch as a person can read them: decoded, with special tokens and the borders of documents visible."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from tfgpt.diagnosis.check_results import pluralize
from tfgpt.tokenization.tokenizer import Tokenizer

CUT = "✂"
"""Stands where attention is cut between two documents of a row."""

# Characters of a row that are shown: of its beginning, around each border, of its end.
BEGINNING, AROUND, ENDING = 240, 90, 60
COLUMNS = 100


def preview(batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, rows: int) -> list[str]:
    """Some rows of a batch, decoded; those with the border of two documents first.

    Special tokens stand in ⟦ ⟧, so that text that only looks like one does not; a line feed is shown as ⏎, a tab as ⇥,
    other control characters as \\x1b. With `segment_ids` in the batch, ✂ stands where attention is cut.

    Args:
        batch: `token_ids` [B, T], and perhaps `segment_ids` and `weights`.
        tokenizer: decodes.
        rows: how many.

    Returns:
        Lines of at most about 100 characters.
    """
    token_ids, segment_ids = batch["token_ids"], batch.get("segment_ids")
    borders = (token_ids[:, 1:] == tokenizer.end_of_text_id).any(axis=1)
    chosen = sorted(range(len(token_ids)), key=lambda row: not borders[row])[:rows]
    lines = []
    for row in sorted(chosen):
        text, marks = readable(token_ids[row], None if segment_ids is None else segment_ids[row], tokenizer)
        documents = 1 + int((token_ids[row, 1:] == tokenizer.end_of_text_id).sum())
        learned = int((batch["weights"][row] > 0).sum())
        lines.append(
            f"row {row}: {token_ids.shape[1]} tokens, {pluralize(documents, 'document')} or parts of them"
            + (f", {learned} targets count" if learned < token_ids.shape[1] else "")
        )
        shown = excerpt(text, marks)
        lines += [f"    {shown[start : start + COLUMNS]}" for start in range(0, len(shown), COLUMNS)]
    return lines


def preview_learned(batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, rows: int, dimmed: bool) -> list[str]:
    """Whole rows of packed conversations, what is not learned dimmed; padding is only counted.

    Args:
        batch: `token_ids`, `targets`, `weights` and `segment_ids` [B, T].
        tokenizer: decodes.
        rows: how many, from the first.
        dimmed: use the terminal's faint letters; otherwise what is learned stands in « ».

    Returns:
        A few lines a row: its figures, then the text, a line for each conversation.
    """
    lines = []
    for row in range(min(rows, len(batch["token_ids"]))):
        segments = batch["segment_ids"][row]
        learned, used = int((batch["weights"][row] > 0).sum()), int((segments > 0).sum())
        lines.append(
            f"row {row}: {len(segments)} tokens, {used} of "
            f"{pluralize(int(segments.max()), 'conversation')} or parts of them, "
            f"{learned} are learned, {len(segments) - used} are padding"
        )
        for segment in range(1, int(segments.max()) + 1):
            here = segments == segment
            # A target stands for its token; the first token of a conversation is nobody's target.
            ids = [*batch["token_ids"][row][here][:1], *batch["targets"][row][here]]
            counts = [False, *(batch["weights"][row][here] > 0)]
            pieces = []
            for learned_here, group in itertools.groupby(zip(counts, ids), key=lambda pair: pair[0]):
                text = readable(np.array([identifier for _, identifier in group]), None, tokenizer)[0]
                marked = text if learned_here else f"\x1b[2m{text}\x1b[0m"
                pieces.append(marked if dimmed else f"«{text}»" if learned_here else text)
            lines.append("    " + "".join(pieces))
    return lines


def readable(token_ids: np.ndarray, segment_ids: np.ndarray | None, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """A row as text, and the places in it where a document begins behind another one."""
    names = {identifier: name for name, identifier in tokenizer.special_tokens.items()}
    pieces: list[str] = []
    marks: list[int] = []
    pending: list[int] = []

    def flush() -> None:
        if pending:
            pieces.append(visible(tokenizer.decode(pending)))
            pending.clear()

    for place, identifier in enumerate(token_ids.tolist()):
        cut = segment_ids is not None and place > 0 and segment_ids[place] != segment_ids[place - 1]
        if cut or identifier in names:
            flush()
        if place > 0 and (cut or identifier == tokenizer.end_of_text_id):
            marks.append(sum(map(len, pieces)))
        if cut:
            pieces.append(CUT)
        if identifier in names:
            pieces.append(f"⟦{names[identifier]}⟧")
        else:
            pending.append(identifier)
    flush()
    return "".join(pieces), marks


def visible(text: str) -> str:
    """Text on one line and harmless to a terminal."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


def excerpt(text: str, marks: list[int]) -> str:
    """The beginning, the surroundings of every mark and the end, with … for what is left out."""
    keep = np.zeros(len(text), bool)
    keep[:BEGINNING] = True
    keep[max(len(text) - ENDING, 0) :] = True
    for mark in marks:
        keep[max(mark - AROUND, 0) : mark + AROUND] = True
    pieces, position = [], 0
    while position < len(text):
        end = position
        while end < len(text) and keep[end] == keep[position]:
            end += 1
        # What is hardly longer than its ellipsis is shown.
        pieces.append(text[position:end] if keep[position] or end - position < 20 else " … ")
        position = end
    return "".join(pieces)
