"""Decoded rows of a batch, with special tokens and the boundaries of documents visible."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from tfgpt.common.formatting import pluralize
from tfgpt.pipeline.batches import training_batches
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.training.objectives.supervised_fine_tuning import SupervisedFineTuning
from tfgpt.training.train_config import TrainConfig

CUT = "✂"  # Between two documents, where attention is cut.
COLUMNS = 100
# Characters of a row that are shown: at its beginning, around each boundary and at its end.
BEGINNING, AROUND, ENDING = 240, 90, 60


def preview_text(batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, rows: int) -> list[str]:
    """Returns rows of a batch as lines of about 100 characters; rows with a document boundary are preferred.

    Special tokens are shown in ⟦ ⟧, a line feed as ⏎, a tab as ⇥ and other control characters as \\x1b. With
    `segment_ids` in the batch, ✂ marks where attention is cut.
    """
    token_ids, segment_ids = batch["token_ids"], batch.get("segment_ids")
    boundaries = token_ids[:, 1:] == tokenizer.end_of_text_id
    chosen = np.argsort(~boundaries.any(axis=1), kind="stable")[:rows]
    lines = []
    for row in sorted(chosen):
        text, marks = decode_row(token_ids[row], None if segment_ids is None else segment_ids[row], tokenizer)
        targets, length = int((batch["weights"][row] > 0).sum()), token_ids.shape[1]
        documents = pluralize(1 + int(boundaries[row].sum()), "document")
        counted = f", {targets} targets count" if targets < length else ""
        lines.append(f"row {row}: {length} tokens, {documents} or parts of them{counted}")
        keep = np.zeros(len(text), bool)
        keep[:BEGINNING] = keep[max(len(text) - ENDING, 0) :] = True
        for mark in marks:
            keep[max(mark - AROUND, 0) : mark + AROUND] = True
        shown = ""
        for kept, group in itertools.groupby(range(len(text)), key=keep.__getitem__):
            positions = list(group)
            # An ellipsis replaces at least 20 characters.
            shown += text[positions[0] : positions[-1] + 1] if kept or len(positions) < 20 else " … "
        lines += [f"    {shown[start : start + COLUMNS]}" for start in range(0, len(shown), COLUMNS)]
    return lines


def preview_conversations(
    batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, rows: int, dim: bool = False
) -> list[str]:
    """Returns rows of packed conversations as lines, one per conversation.

    Targets are shown in « »; with `dim`, for terminals, all other tokens are dimmed instead.
    """
    lines = []
    for row in range(min(rows, len(batch["token_ids"]))):
        token_ids, targets, weights, segments = (
            batch[name][row] for name in ("token_ids", "targets", "weights", "segment_ids")
        )
        used, count = int((segments > 0).sum()), int(segments.max())
        lines.append(
            f"row {row}: {len(segments)} tokens, {used} of {pluralize(count, 'conversation')} or parts of them, "
            f"{int((weights > 0).sum())} are learned, {len(segments) - used} are padding"
        )
        for segment in range(1, count + 1):
            here = segments == segment
            # The first token of a conversation is not a target.
            ids = np.concatenate([token_ids[here][:1], targets[here]])
            learned = np.concatenate([[False], weights[here] > 0])
            pieces = []
            for is_learned, group in itertools.groupby(range(len(ids)), key=learned.__getitem__):
                text, _ = decode_row(ids[list(group)], None, tokenizer)
                if is_learned:
                    pieces.append(text if dim else f"«{text}»")
                else:
                    pieces.append(f"\x1b[2m{text}\x1b[0m" if dim else text)
            lines.append("    " + "".join(pieces))
    return lines


def preview_chat_data(config: TrainConfig, rows: int, dim: bool) -> list[str]:
    objective = SupervisedFineTuning()
    data = objective.prepare(config)
    lines = ["", f"Packed: {objective.describe_data(config, data)}", ""]
    if rows:
        reader = objective.training_reader(config, data)
        batch = next(iter(training_batches(reader, batch_size=rows).as_numpy_iterator()))
        lines += [*preview_conversations(batch, data.tokenizer, rows, dim), ""]
    return lines


def decode_row(token_ids: np.ndarray, segment_ids: np.ndarray | None, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """Returns a row as text and the offsets in it where a document follows another one."""
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    text = ""
    marks: list[int] = []
    pending: list[int] = []
    for position, token_id in enumerate(token_ids.tolist()):
        cut = segment_ids is not None and position > 0 and segment_ids[position] != segment_ids[position - 1]
        if cut or token_id in names:
            text += escape(tokenizer.decode(pending))
            pending = []
        if position > 0 and (cut or token_id == tokenizer.end_of_text_id):
            marks.append(len(text))
        if cut:
            text += CUT
        if token_id in names:
            text += f"⟦{names[token_id]}⟧"
        else:
            pending.append(token_id)
    return text + escape(tokenizer.decode(pending)), marks


def escape(text: str) -> str:
    """Returns text on one line, without control characters."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)
