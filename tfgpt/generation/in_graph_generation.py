"""Whole texts inside one graph: what `generator.Generator` does between its graphs, as TensorFlow operations.

For SavedModels, where no Python runs: the same prompt pass, the same steps, the same windows, so the same tokens as
`Generator`'s. A text is written in blocks of steps; between blocks the rows that have ended leave the batch, and rows
whose context is full go on from the last half of it. Stop strings are no part of this: who wants them asks for a few
tokens at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfgpt.generation.decode_steps import Cache, DecodeFunctions, cache_specs, slots_of, window_start
from tfgpt.generation.sampling import SamplingParameters, choose, seen_tokens

# Steps between looks at which rows have ended.
BLOCK_STEPS = 32


class GenerateOutput(NamedTuple):
    """Texts behind their prompts.

    Attributes:
        tokens: [batch, most tokens asked for] int32, a row's tokens without the stop token; zeros behind them.
        counts: [batch] int32, how many they are.
        stopped: [batch] bool, whether a stop token ended the row.
        log_probabilities: [batch] float32, natural, of the tokens and the stop token, under the model itself.
    """

    tokens: tf.Tensor
    counts: tf.Tensor
    stopped: tf.Tensor
    log_probabilities: tf.Tensor


class State(NamedTuple):
    """What a block leaves to the next one; the rows of the batch, then the rows still written, then their cache.

    Attributes:
        ids: [batch, length] int32, prompts and what was written behind each, zeros behind that.
        counts, stopped, log_probabilities: as `GenerateOutput`'s, but a stop token counts.
        rows: [live] int32, the rows that go on.
        padding: [live] int32, as `DecodeFunctions.steps`'.
        cache: of the live rows, up to the token before their last one; no slots before the first block.
    """

    ids: tf.Tensor
    counts: tf.Tensor
    stopped: tf.Tensor
    log_probabilities: tf.Tensor
    rows: tf.Tensor
    padding: tf.Tensor
    cache: Cache


def generate(
    decoding: DecodeFunctions,
    ids: tf.Tensor,
    lengths: tf.Tensor,
    max_new_tokens: tf.Tensor,
    parameters: SamplingParameters,
) -> GenerateOutput:
    """Writes a text behind each prompt.

    Args:
        decoding: the model's functions.
        ids: [batch, length] int32, prompts at the left; what is behind a row's length is not read.
        lengths: [batch] int32, at least 1. Of a prompt longer than the context the last part is read.
        max_new_tokens: [batch] int32; below 1 writes nothing.
        parameters: how rows are sampled.
    """
    batch_size, context = tf.shape(ids)[0], decoding.decoder.config.max_sequence_length
    longest = tf.maximum(tf.reduce_max(tf.concat([max_new_tokens, [0]], 0)), 0)

    def block(state: State) -> tuple[State]:
        present = tf.gather(lengths + state.counts, state.rows)
        room = context - slots_of(state.cache) + tf.reduce_min(state.padding)
        sampling = SamplingParameters(*(tf.gather(column, state.rows) for column in parameters))
        live_ids = tf.gather(state.ids, state.rows)
        seen = _seen(live_ids, present, sampling, decoding.decoder.config.vocabulary_size)
        remaining = tf.gather(max_new_tokens - state.counts, state.rows)

        def first_token():
            windows, window_lengths = _windows(live_ids, present, context)
            logits, cache = decoding.prefill(windows, window_lengths)
            tokens, log_probabilities = choose(logits, sampling, seen, present)
            return tokens[:, None], log_probabilities[:, None], cache, tf.shape(windows)[1] - window_lengths

        def more_tokens():
            last = tf.gather(live_ids, present - 1, batch_dims=1)
            count = tf.minimum(tf.minimum(BLOCK_STEPS, room), tf.reduce_max(remaining))
            new = decoding.steps(state.cache, state.padding, last, present, remaining, sampling, seen, count)
            return new.tokens, new.log_probabilities, new.cache, state.padding

        fresh = (slots_of(state.cache) == 0) | (room <= 0)
        tokens, log_probabilities, cache, padding = tf.cond(fresh, first_token, more_tokens)
        return (_absorbed(state, decoding, tokens, log_probabilities, cache, padding, present, remaining),)

    first_rows = tf.cast(tf.where(max_new_tokens > 0)[:, 0], tf.int32)
    state = State(
        tf.pad(tf.where(tf.sequence_mask(lengths, tf.shape(ids)[1]), ids, 0), [[0, 0], [0, longest]]),
        tf.zeros([batch_size], tf.int32),
        tf.zeros([batch_size], tf.bool),
        tf.zeros([batch_size], tf.float32),
        first_rows,
        tf.zeros_like(first_rows),
        decoding.decoder.empty_cache(tf.size(first_rows), 0),
    )
    [state] = tf.while_loop(
        lambda state: tf.size(state.rows) > 0,
        block,
        [state],
        shape_invariants=[_shapes(decoding)],
        parallel_iterations=1,
    )
    counts = state.counts - tf.cast(state.stopped, tf.int32)
    places = tf.minimum(lengths[:, None] + tf.range(longest), tf.shape(state.ids)[1] - 1)
    tokens = tf.gather(state.ids, places, batch_dims=1)
    return GenerateOutput(
        tf.where(tf.sequence_mask(counts, longest), tokens, 0), counts, state.stopped, state.log_probabilities
    )


def _shapes(decoding: DecodeFunctions) -> State:
    """The shapes that a block may change, as `tf.while_loop` wants them."""
    rows = tf.TensorShape([None])
    cache = [(key.shape, value.shape) for key, value in cache_specs(decoding.decoder)]
    return State(tf.TensorShape([None, None]), rows, rows, rows, rows, rows, cache)


def _windows(ids: tf.Tensor, present: tf.Tensor, context: int) -> tuple[tf.Tensor, tf.Tensor]:
    """What the model reads of each row, padded on the left: [rows, longest] int32, and the lengths [rows]."""
    start = window_start(present, context)
    window_lengths = present - start
    width = tf.reduce_max(window_lengths)
    places = (present - width)[:, None] + tf.range(width)
    return tf.where(places >= start[:, None], tf.gather(ids, tf.maximum(places, 0), batch_dims=1), 0), window_lengths


def _seen(ids: tf.Tensor, present: tf.Tensor, sampling: SamplingParameters, vocabulary_size: int) -> tf.Tensor:
    """[rows, vocabulary] bool, the tokens of each row; no columns where no row has a repetition penalty."""
    return tf.cond(
        tf.reduce_any(sampling.repetition_penalty != 1),
        lambda: seen_tokens(ids, tf.sequence_mask(present, tf.shape(ids)[1]), vocabulary_size),
        lambda: tf.zeros([tf.shape(ids)[0], 0], tf.bool),
    )


def _absorbed(
    state: State,
    decoding: DecodeFunctions,
    tokens: tf.Tensor,
    log_probabilities: tf.Tensor,
    cache: Cache,
    padding: tf.Tensor,
    present: tf.Tensor,
    remaining: tf.Tensor,
) -> State:
    """The state with new tokens [live, count] and their log probabilities, without the rows that they end.

    Args:
        present: [live] int32, tokens that the rows had.
        remaining: [live] int32, tokens that they might still have.
    """
    width = tf.shape(tokens)[1]
    stops = tf.reduce_any(tokens[:, :, None] == decoding.stop_tokens, -1)  # (live, count)
    before_stop = tf.cumsum(tf.cast(stops, tf.int32), axis=1, exclusive=True) == 0
    kept = before_stop & (tf.range(width) < remaining[:, None])
    added = tf.reduce_sum(tf.cast(kept, tf.int32), 1)
    stopped = tf.reduce_any(stops & kept, 1)
    live_places = tf.where(kept)  # (kept tokens, 2)
    live = tf.cast(live_places[:, 0], tf.int32)
    columns = tf.gather(present, live) + tf.cast(live_places[:, 1], tf.int32)
    ids = tf.tensor_scatter_nd_update(
        state.ids, tf.stack([tf.gather(state.rows, live), columns], 1), tf.boolean_mask(tokens, kept)
    )
    rows = state.rows[:, None]
    gained = tf.reduce_sum(tf.where(kept, log_probabilities, 0.0), 1)
    going_on = ~stopped & (added < remaining)
    left = tf.cast(tf.where(going_on)[:, 0], tf.int32)
    cache = tf.cond(tf.size(left) < tf.size(going_on), lambda: decoding.take_rows(cache, left), lambda: [*cache])
    return State(
        ids,
        tf.tensor_scatter_nd_add(state.counts, rows, added),
        tf.tensor_scatter_nd_update(state.stopped, rows, stopped),
        tf.tensor_scatter_nd_add(state.log_probabilities, rows, gained),
        tf.gather(state.rows, left),
        tf.gather(padding, left),
        cache,
    )
