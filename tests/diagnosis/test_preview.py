"""The preview: special tokens, document boundaries, and no control characters."""

import numpy as np

from tfgpt.diagnosis.preview import escape, preview_text
from tfgpt.pipeline.batches import document_borders
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def batch(text: str, masked: bool = False) -> dict[str, np.ndarray]:
    """One row; ¶ in the text stands for end-of-text."""
    end = [TOKENIZER.end_of_text_id]
    ids = [list(TOKENIZER.encode(part)) for part in text.split("¶")]
    row = np.array([sum(([*end, *part] for part in ids[1:]), list(ids[0]))], np.int32)
    found = {"token_ids": row, "weights": np.ones(row.shape, np.float32)}
    return found | (document_borders(row, TOKENIZER.end_of_text_id) if masked else {})


def shown(*arguments, **options) -> str:
    return "".join(line.removeprefix("    ") for line in preview_text(batch(*arguments, **options), TOKENIZER, 1)[1:])


def test_boundaries_are_shown_and_text_that_looks_like_one_is_not():
    assert shown("one <|endoftext|>¶two") == "one <|endoftext|>⟦<|endoftext|>⟧two"
    assert shown("one¶two", masked=True) == "one✂⟦<|endoftext|>⟧two"


def test_control_characters_and_half_characters_are_harmless():
    assert escape("a\x1b[31m\tb\nc\u202e") == "a\\x1b[31m⇥b⏎c\\u202e"
    halved = batch("é")
    halved["token_ids"] = halved["token_ids"][:, :1]
    assert "\ufffd" in preview_text(halved, TOKENIZER, 1)[1]


def test_long_rows_show_beginning_borders_and_end():
    text = shown("A" * 1000 + "BORDER¶NEXT" + "C" * 1000 + "LAST")
    assert "BORDER⟦<|endoftext|>⟧NEXT" in text and text.endswith("LAST") and text.startswith("A" * 100)
    assert len(text) < 800 and text.count("…") == 2


def test_rows_with_a_border_come_first():
    rows = {name: np.concatenate([batch("plain__")[name], batch("one¶two")[name]]) for name in ("token_ids", "weights")}
    assert preview_text(rows, TOKENIZER, 1)[0] == "row 1: 7 tokens, 2 documents or parts of them"


def test_targets_that_do_not_count_are_mentioned():
    rows = batch("abc")
    rows["weights"][0, :2] = 0
    assert preview_text(rows, TOKENIZER, 1)[0].endswith("1 targets count")
