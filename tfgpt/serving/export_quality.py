"""Bits per byte of an export's weights, so that the price of a precision can be told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.sources.compressed import open_decompressed
from tfgpt.pipeline.chat_shards import ChatShards, open_held_out
from tfgpt.tokenization.tokenizer import Tokenizer

BATCH_TOKENS = 4096


def quality_ids(model: Path, text: str, tokenizer: Tokenizer, byte_limit: int) -> tuple[np.ndarray, str] | None:
    """The ids to measure on, [n] int32, and what they are called; None where there are none.

    Args:
        model: the model directory, whose training.json knows what its run held out: text, or
            conversations (then all that is said in them counts).
        text: a file to read instead, or "".
        tokenizer: the model's.
        byte_limit: bytes of it to use.

    Raises:
        UserError: the file cannot be read.
    """
    if byte_limit == 0:
        return None
    if text:
        try:
            with open_decompressed(Path(text).expanduser()) as (file, _):
                content = file.read(byte_limit)
        except UserError as error:
            raise SettingError("evaluation_text", str(error)) from error
        if not content:
            raise UserError(f"--evaluation_text: {text} is empty")
        first = tokenizer.start_ids or (tokenizer.end_of_text_id,)
        return np.concatenate([first, tokenizer.encode(content)]).astype(np.int32), text
    provenance = model / "training.json"
    if not provenance.is_file():
        return None
    held_out = open_held_out(read_json(provenance).get("data", {}).get("validation", {}), tokenizer)
    if held_out is None:
        return None
    tokens = held_out.ids if isinstance(held_out, ChatShards) else held_out.tokens
    ids = np.asarray(tokens[:byte_limit], np.int32)
    behind = np.cumsum(tokenizer.byte_lengths()[ids]) <= byte_limit
    return (ids[behind], "the held-out text") if behind.sum() > 1 else None


def bits_per_byte(log_likelihood: Any, ids: np.ndarray, tokenizer: Tokenizer, context: int) -> float:
    """Bits per byte of text; special tokens count neither bits nor bytes.

    Args:
        log_likelihood: as `Functions.log_likelihood`.
        ids: [n] int32, cut into rows of the context that share one token.
        tokenizer: says how many bytes ids have.
        context: tokens of a row.
    """
    lengths = tokenizer.byte_lengths()
    context = max(context, 2)
    rows = [ids[start : start + context] for start in range(0, len(ids) - 1, context - 1)]
    together = max(1, BATCH_TOKENS // context)
    total = 0.0
    for start in range(0, len(rows), together):
        batch = tf.ragged.constant([row.tolist() for row in rows[start : start + together]], tf.int32)
        padded = batch.to_tensor(tokenizer.padding_id)
        counted = tf.gather(lengths, padded) > 0
        total -= float(tf.reduce_sum(log_likelihood(padded, tf.cast(batch.row_lengths(), tf.int32), counted)))
    return total / math.log(2) / int(lengths[ids[1:]].sum())
