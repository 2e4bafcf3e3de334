"""Looking left and right in flat vectors: what the in-graph tokenizer is made of."""

from __future__ import annotations

import tensorflow as tf


def preceding(values: tf.Tensor, distance: int, filler: int | bool | None = None) -> tf.Tensor:
    """[n] the value `distance` entries before each; `filler` (or zero) where there is none."""
    zero = tf.zeros([distance], values.dtype) if filler is None else tf.fill([distance], tf.cast(filler, values.dtype))
    return tf.concat([zero, values], 0)[: tf.size(values)]


def following(values: tf.Tensor, filler: tf.Tensor | int | bool) -> tf.Tensor:
    """[n] the value after each; `filler` behind the last."""
    return tf.concat([values[1:], tf.fill([tf.minimum(tf.size(values), 1)], tf.cast(filler, values.dtype))], 0)


def flags_at(positions: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """[count] bool, true at the given positions, none of which is named twice."""
    return tf.scatter_nd(positions[:, None], tf.ones_like(positions), count[None]) > 0


def position_in_run(flags: tf.Tensor, counted_from_start: bool = False) -> tf.Tensor:
    """[n] int32: how many true flags stand in an unbroken row before each entry.

    With `counted_from_start` a flag says "continues the run before", so the entry itself counts: 0 at a run's start.
    """
    index = tf.range(tf.size(flags))
    run = tf.cumsum(tf.cast(~flags, tf.int32))  # the number of the last entry without a flag
    breaks = tf.concat([[-1], tf.cast(tf.where(~flags)[:, 0], tf.int32)], 0)
    since = index - tf.gather(breaks, run)
    return since if counted_from_start else tf.where(flags, since - 1, 0)
