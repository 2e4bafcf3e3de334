"""TensorFlow operations on texts: shifts and runs, UTF-8 decoding and encoding, and splitting at tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping

import tensorflow as tf

from tfgpt.tokenization.jinja_template import ESCAPE

RAW = 0x110000
"""Added to a byte outside any well-formed UTF-8 sequence to represent it among code points."""

CUT = f"{ESCAPE}2"
"""Put around names of tokens in texts in which ESCAPE is otherwise followed by 0 or 1."""


def preceding(values: tf.Tensor, distance: int, filler: int | bool | None = None) -> tf.Tensor:
    """Returns [n] the value `distance` entries before each, or `filler` (default: zero) where there is none."""
    zero = tf.zeros([distance], values.dtype) if filler is None else tf.fill([distance], tf.cast(filler, values.dtype))
    return tf.concat([zero, values], 0)[: tf.size(values)]


def following(values: tf.Tensor, filler: tf.Tensor | int | bool) -> tf.Tensor:
    """Returns [n] the value after each, and `filler` after the last."""
    return tf.concat([values[1:], tf.fill([tf.minimum(tf.size(values), 1)], tf.cast(filler, values.dtype))], 0)


def flags_at(positions: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns [count] bool, true at the positions, which must differ."""
    return tf.scatter_nd(positions[:, None], tf.ones_like(positions), count[None]) > 0


def position_in_run(flags: tf.Tensor, counted_from_start: bool = False) -> tf.Tensor:
    """Returns [n] int32: the number of true flags directly before each entry.

    With `counted_from_start` a flag means "continues the run", and the entry itself counts: 0 at the start of a run.
    """
    index = tf.range(tf.size(flags))
    run = tf.cumsum(tf.cast(~flags, tf.int32))  # the number of the last entry without a flag
    breaks = tf.concat([[-1], tf.cast(tf.where(~flags)[:, 0], tf.int32)], 0)
    since = index - tf.gather(breaks, run)
    return since if counted_from_start else tf.where(flags, since - 1, 0)


def utf8_sequences(contents: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the well-formed UTF-8 sequences (The Unicode Standard, table 3-7).

    Args:
        contents: [T] int32 bytes.
        first: [T] bool, the starts of texts; no sequence crosses them.

    Returns:
        [T] int32 code points and [T] int32 lengths (1 to 4) of the sequences, at their first bytes; 0 and 0 elsewhere.
    """
    ends = following(first, True)
    code_points, lengths = tf.zeros_like(contents), tf.zeros_like(contents)
    byte, value, well_formed = contents, tf.zeros_like(contents), True
    # The lead bytes of each length, and the smallest code point that is not overlong.
    for length, (lead, next_lead, smallest) in enumerate(
        [(0, 0x80, 0), (0xC0, 0xE0, 0x80), (0xE0, 0xF0, 0x800), (0xF0, 0xF8, 0x10000)], 1
    ):
        if length > 1:
            byte = tf.where(ends, 0, following(byte, 0))
            value = value * 64 + byte - 0x80
            well_formed &= (byte >= 0x80) & (byte < 0xC0)
        code_point = value + (contents - lead) * 64 ** (length - 1)
        found = well_formed & (contents >= lead) & (contents < next_lead) & (code_point >= smallest)
        found &= ((code_point < 0xD800) | (code_point > 0xDFFF)) & (code_point <= 0x10FFFF)
        code_points = tf.where(found, code_point, code_points)
        lengths = tf.where(found, length, lengths)
    return code_points, lengths


def characters(contents: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Splits bytes into characters, as `utf8_sequences`; each byte outside a sequence is one.

    Returns:
        [C] int32 code points, [C] bool whether they are well-formed, [C] int32 positions of their first bytes.
    """
    code_points, lengths = utf8_sequences(contents, first)
    covered = preceding(lengths > 1, 1) | preceding(lengths > 2, 2) | preceding(lengths > 3, 3)
    where = tf.cast(tf.where(~covered)[:, 0], tf.int32)
    return tf.gather(code_points, where), tf.gather(lengths > 0, where), where


def utf8_bytes(code_points: tf.Tensor, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Encodes [C] int32 characters (`RAW` + byte is that byte) to [T] int32 bytes, and returns the [T] pieces."""
    raw = code_points >= RAW
    one = raw | (code_points < 0x80)
    two, three = code_points < 0x800, code_points < 0x10000
    low = [0x80 | (code_points // 64**power) % 64 for power in range(4)]
    first = tf.where(one, code_points - tf.where(raw, RAW, 0), tf.where(two, 0xC0 | code_points // 64, 0))
    first = tf.where(one | two, first, tf.where(three, 0xE0 | code_points // 4096, 0xF0 | code_points // 64**3))
    second = tf.where(two, low[0], tf.where(three, low[1], low[2]))
    third = tf.where(three, low[0], low[1])
    lengths = tf.where(one, 1, tf.where(two, 2, tf.where(three, 3, 4)))
    contents = tf.boolean_mask(tf.stack([first, second, third, low[0]], 1), tf.sequence_mask(lengths, 4))
    return contents, tf.repeat(pieces, lengths)


def split_at_tokens(texts: tf.Tensor, ids: Mapping[str, int]) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
    """Splits [B] texts at names (name → id); of names that begin at one position, the longest is found.

    Returns:
        RaggedTensor [B, (P)] of the parts: text and name take turns, and names are replaced by "". [all parts] int64,
        1 for a name. [all parts] int32, the ids of the names.
    """
    names = sorted(ids, key=len, reverse=True)
    if names:
        texts = tf.strings.regex_replace(texts, f"({'|'.join(map(re.escape, names))})", rf"{CUT}\1{CUT}")
    parts = tf.strings.split(texts, CUT)
    is_name = tf.ragged.range(parts.row_lengths()).flat_values % 2
    which = tf.argmax(parts.flat_values[:, None] == tf.constant(names or [""]), 1)
    found = tf.gather(tf.constant([ids[name] for name in names] or [0], tf.int32), which)
    return parts.with_flat_values(tf.where(is_name == 1, "", parts.flat_values)), is_name, found


def join_with_tokens(
    parts: tf.RaggedTensor, encoded: tf.RaggedTensor, has_token: tf.Tensor, token_ids: tf.Tensor
) -> tf.RaggedTensor:
    """Joins the ids of parts [B, (P)] to RaggedTensor [B, (ids)] int32.

    Args:
        parts: result of `split_at_tokens`.
        encoded: RaggedTensor [all parts, (ids)] int32.
        has_token: [all parts] int64, 1 if a token comes before the ids of the part.
        token_ids: [all parts] int32 ids of these tokens.
    """
    tokens = tf.RaggedTensor.from_row_lengths(tf.boolean_mask(token_ids, has_token > 0), has_token, validate=False)
    joined = tf.concat([tokens, encoded], 1)
    splits = tf.gather(tf.cast(joined.row_splits, tf.int64), parts.row_splits)
    return tf.RaggedTensor.from_row_splits(joined.values, splits, validate=False)
