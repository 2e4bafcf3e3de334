"""In-graph generation for SavedModels; equivalent to `generator.Generator`.

It has the same prompt pass, steps and windows, so it generates the same tokens. A text is generated in blocks of
steps; after a block, finished rows leave the batch, and rows whose context is full continue from its last half. Stop
strings are not supported: clients that need them ask for a few tokens at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfgpt.generation.decode_steps import Cache, DecodeFunctions, cache_length, cache_specs, window_start
from tfgpt.generation.sampling import SamplingParameters, choose, seen_tokens

BLOCK_STEPS = 32


class GenerateOutput(NamedTuple):
    """Generated texts; N is the largest max_new_tokens.

    Example:

    >>> GenerateOutput._fields
    ('tokens', 'counts', 'stopped', 'log_probabilities', 'token_log_probabilities')
    """

    tokens: tf.Tensor  # [batch, N] int32, the new tokens of a row without the stop token, then zeros
    counts: tf.Tensor  # [batch] int32, the number of new tokens
    stopped: tf.Tensor  # [batch] bool, whether a stop token ended the row
    log_probabilities: tf.Tensor  # [batch] float32, natural, of the tokens and the stop token, under the model itself
    token_log_probabilities: tf.Tensor  # [batch, N] float32, those of `tokens`, then zeros


class State(NamedTuple):
    """The state between two blocks; "live" rows are the unfinished ones."""

    ids: tf.Tensor  # [batch, length + N] int32, prompts and new tokens, then zeros
    log_probabilities: tf.Tensor  # [batch, length + N] float32, of the new tokens, otherwise zeros
    counts: tf.Tensor  # [batch] int32, the number of new tokens, stop tokens included
    stopped: tf.Tensor  # [batch] bool
    rows: tf.Tensor  # [live] int32, the numbers of the live rows
    padding: tf.Tensor  # [live] int32, the padding of the cache on the left
    cache: Cache  # the live rows up to the token before their last one; empty before the first block


def generate(
    decoding: DecodeFunctions,
    ids: tf.Tensor,
    lengths: tf.Tensor,
    max_new_tokens: tf.Tensor,
    parameters: SamplingParameters,
) -> GenerateOutput:
    """Continues prompts.

    Args:
        ids: [batch, length] int32, prompts padded on the right with any ids.
        lengths: [batch] int32, at least 1. Only the end of a prompt longer than the context is read.
        max_new_tokens: [batch] int32; a row below 1 gets no tokens.
    """
    batch_size, context = tf.shape(ids)[0], decoding.decoder.config.max_sequence_length
    longest = tf.maximum(tf.reduce_max(tf.concat([max_new_tokens, [0]], 0)), 0)

    def block(state: State) -> tuple[State]:
        present = tf.gather(lengths + state.counts, state.rows)
        room = context - cache_length(state.cache) + tf.reduce_min(state.padding)
        sampling = SamplingParameters(*(tf.gather(column, state.rows) for column in parameters))
        live_ids = tf.gather(state.ids, state.rows)
        size = decoding.decoder.config.vocabulary_size
        seen = tf.cond(
            tf.reduce_any(sampling.repetition_penalty != 1),
            lambda: seen_tokens(live_ids, tf.sequence_mask(present, tf.shape(live_ids)[1]), size),
            lambda: tf.zeros([tf.size(present), 0], tf.bool),
        )
        remaining = tf.gather(max_new_tokens - state.counts, state.rows)

        def first_token():
            start = window_start(present, context)
            width = tf.reduce_max(present - start)
            places = (present - width)[:, None] + tf.range(width)  # [live, width], padded on the left
            windows = tf.gather(live_ids, tf.maximum(places, 0), batch_dims=1)
            logits, cache = decoding.prefill(tf.where(places >= start[:, None], windows, 0), present - start)
            tokens, log_probabilities = choose(logits, sampling, seen, present)
            return tokens[:, None], log_probabilities[:, None], cache, width - (present - start)

        def more_tokens():
            last = tf.gather(live_ids, present - 1, batch_dims=1)
            count = tf.minimum(tf.minimum(BLOCK_STEPS, room), tf.reduce_max(remaining))
            new = decoding.steps(state.cache, state.padding, last, present, remaining, sampling, seen, count)
            return new.tokens, new.log_probabilities, new.cache, state.padding

        needs_prefill = (cache_length(state.cache) == 0) | (room <= 0)
        tokens, log_probabilities, cache, padding = tf.cond(needs_prefill, first_token, more_tokens)
        state = state._replace(cache=cache, padding=padding)
        return (_append(state, decoding, tokens, log_probabilities, present, remaining),)

    rows = tf.cast(tf.where(max_new_tokens > 0)[:, 0], tf.int32)
    padded = tf.pad(tf.where(tf.sequence_mask(lengths, tf.shape(ids)[1]), ids, 0), [[0, 0], [0, longest]])
    state = State(
        ids=padded,
        log_probabilities=tf.zeros_like(padded, tf.float32),
        counts=tf.zeros([batch_size], tf.int32),
        stopped=tf.zeros([batch_size], tf.bool),
        rows=rows,
        padding=tf.zeros_like(rows),
        cache=decoding.decoder.empty_cache(tf.size(rows), 0),
    )
    table, column = tf.TensorShape([None, None]), tf.TensorShape([None])
    cache_shapes = [(key.shape, value.shape) for key, value in cache_specs(decoding.decoder)]
    [state] = tf.while_loop(
        lambda state: tf.size(state.rows) > 0,
        block,
        [state],
        shape_invariants=[State(table, table, column, column, column, column, cache_shapes)],
        parallel_iterations=1,
    )
    counts = state.counts - tf.cast(state.stopped, tf.int32)
    kept = tf.sequence_mask(counts, longest)
    places = tf.minimum(lengths[:, None] + tf.range(longest), tf.shape(state.ids)[1] - 1)
    return GenerateOutput(
        tokens=tf.where(kept, tf.gather(state.ids, places, batch_dims=1), 0),
        counts=counts,
        stopped=state.stopped,
        log_probabilities=tf.reduce_sum(state.log_probabilities, 1),
        token_log_probabilities=tf.where(kept, tf.gather(state.log_probabilities, places, batch_dims=1), 0.0),
    )


def _append(
    state: State,
    decoding: DecodeFunctions,
    tokens: tf.Tensor,
    log_probabilities: tf.Tensor,
    present: tf.Tensor,
    remaining: tf.Tensor,
) -> State:
    """Appends new tokens [live, count] and their log probabilities, and removes the rows that they finish.

    `present` [live] int32 is the number of tokens of each row before, `remaining` the most new ones.
    """
    stops = tf.reduce_any(tokens[:, :, None] == decoding.stop_tokens, -1)  # (live, count)
    before_stop = tf.cumsum(tf.cast(stops, tf.int32), axis=1, exclusive=True) == 0
    kept = before_stop & (tf.range(tf.shape(tokens)[1]) < remaining[:, None])
    added = tf.reduce_sum(tf.cast(kept, tf.int32), 1)
    stopped = tf.reduce_any(stops & kept, 1)
    rows, columns = tf.unstack(tf.cast(tf.where(kept), tf.int32), axis=1)  # (kept tokens)
    places = tf.stack([tf.gather(state.rows, rows), tf.gather(present, rows) + columns], 1)
    unfinished = ~stopped & (added < remaining)
    live = tf.cast(tf.where(unfinished)[:, 0], tf.int32)
    cache = tf.cond(tf.reduce_all(unfinished), lambda: [*state.cache], lambda: decoding.take_rows(state.cache, live))
    return State(
        ids=tf.tensor_scatter_nd_update(state.ids, places, tf.boolean_mask(tokens, kept)),
        log_probabilities=tf.tensor_scatter_nd_update(
            state.log_probabilities, places, tf.boolean_mask(log_probabilities, kept)
        ),
        counts=tf.tensor_scatter_nd_add(state.counts, state.rows[:, None], added),
        stopped=tf.tensor_scatter_nd_update(state.stopped, state.rows[:, None], stopped),
        rows=tf.gather(state.rows, live),
        padding=tf.gather(state.padding, live),
        cache=cache,
    )
