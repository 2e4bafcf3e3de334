"""The graphs that generation runs: one pass over the prompts, then loops of one-token steps over the cache.

Rows are padded on the left, so that all write the same slot of the cache in a step. Each graph is traced once:
batch size, prompt length, cache length and number of steps are all dynamic. What a loop writes is a short cache of its
own behind a past that it only reads, joined when the loop ends: a step copies the cache that it writes to (see
`attention.write_slots`). With 8 rows of 512 tokens of a GPT-2 of 124 million parameters that lowered a step from 183 to
108 ms of CPU time in float32, from 111 to 66 in bfloat16 (one thread); with one row of 70, from 40.0 to 39.6:
there the weights count, which TensorFlow reads at 10 to 16 GB/s in a product with one row (llama.cpp: 27 ms, 18 GB/s).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfgpt.generation import sampling
from tfgpt.model.decoder import Decoder

Cache = list[tuple[tf.Tensor, tf.Tensor]]
FIRST_BEAM_SLOTS = 16


# What the graphs take; only a decoder's own sizes are fixed.
INTEGER = tf.TensorSpec([], tf.int32)
INTEGERS = tf.TensorSpec([None], tf.int32)
INTEGER_TABLE = tf.TensorSpec([None, None], tf.int32)
LOGITS = SCORES = tf.TensorSpec([None, None], tf.float32)
SEEN = tf.TensorSpec([None, None], tf.bool)
PARAMETERS = sampling.SamplingParameters.specs()


def graph(function: Callable, *signature: Any) -> Callable:
    """A function as a graph that is traced once. All loops and branches are written out, so no autograph is needed."""
    return tf.function(function, input_signature=signature, autograph=False)


choose = graph(sampling.choose, LOGITS, PARAMETERS, SEEN, INTEGERS)


class Steps(NamedTuple):
    """What a loop gives back: its tokens, their log probabilities, and the cache.

    Attributes:
        tokens: [batch, steps] int32.
        log_probabilities: [batch, steps] float32.
        cache: with a slot more for each step.
    """

    tokens: tf.Tensor
    log_probabilities: tf.Tensor
    cache: Cache


class DecodeFunctions:
    """The steps of decoding as functions of tensors, traced alone (`CompiledDecodeFunctions`) or inside other graphs.

    Args:
        decoder: the model; its weights are read anew at each call.
        stop_tokens: the ids that end a row.
    """

    def __init__(self, decoder: Decoder, stop_tokens: tuple[int, ...]):
        self.decoder = decoder
        self.stop_tokens = np.array(stop_tokens, np.int32)

    def prefill(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, Cache]:
        """Runs the prompts.

        Args:
            token_ids: [batch, length] int32, padded on the left.
            lengths: [batch] int32, tokens that are no padding; at least 1.

        Returns:
            The logits of the next token, [batch, vocabulary] float32, and the cache, `length` slots long.
        """
        batch_size, length = tf.shape(token_ids)[0], tf.shape(token_ids)[1]
        slots = tf.range(length)[None]
        padding = (length - lengths)[:, None]
        hidden, cache = self.decoder.call_with_cache(
            token_ids, slots - padding, self.decoder.empty_cache(batch_size, length), tf.constant(0), slots >= padding
        )
        return self.decoder.logits(hidden[:, -1]), cache

    def hidden_states(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Rows with no padding before them, [batch, length] int32 → the last hidden states [batch, length, width]."""
        batch_size, length = tf.shape(token_ids)[0], tf.shape(token_ids)[1]
        slots = tf.range(length)[None]
        cache = self.decoder.empty_cache(batch_size, length)
        return self.decoder.call_with_cache(token_ids, slots, cache, tf.constant(0), slots >= 0)[0]

    def take_rows(self, cache: Cache, rows: tf.Tensor) -> Cache:
        """The cache of these rows [new batch] int32, which may leave out, repeat and reorder."""
        return [(tf.gather(key, rows), tf.gather(value, rows)) for key, value in cache]

    def steps(
        self,
        cache: Cache,
        padding: tf.Tensor,
        tokens: tf.Tensor,
        position: tf.Tensor,
        remaining: tf.Tensor,
        parameters: sampling.SamplingParameters,
        seen: tf.Tensor,
        steps: tf.Tensor,
    ) -> Steps:
        """Up to `steps` tokens more for each row; ends early once every row has ended.

        Args:
            cache: full up to the token before `tokens`.
            padding: [batch] int32, slots of padding at each row's start.
            tokens: [batch] int32, each row's last token, not yet in the cache.
            position: [batch] int32, how many tokens stand before the next one, for its random number.
            remaining: [batch] int32, how many tokens the row may still have.
            parameters: how rows are sampled.
            seen: [batch, vocabulary] bool, or [batch, 0] where no row has a repetition penalty.
            steps: scalar int32.

        Returns:
            As many columns as steps; a row's columns behind the token that ended it hold nothing of use.
        """
        batch_size = tf.shape(tokens)[0]
        first_slot = slots_of(cache)
        past = self.decoder.as_past(cache)
        valid = tf.range(first_slot + steps)[None] >= padding[:, None]

        def unfinished(step, ended, *_):
            return (step < steps) & ~tf.reduce_all(ended)

        def one_step(step, ended, tokens, seen, all_tokens, all_log_probabilities, new):
            places = (first_slot + step - padding)[:, None]
            hidden, new = self.decoder.call_with_cache(tokens[:, None], places, new, step, valid, past)
            logits = self.decoder.logits(hidden[:, 0])
            tokens, log_probabilities = sampling.choose(logits, parameters, seen, position + step)
            all_tokens = tf.tensor_scatter_nd_update(all_tokens, [[step]], tokens[None])
            all_log_probabilities = tf.tensor_scatter_nd_update(
                all_log_probabilities, [[step]], log_probabilities[None]
            )
            step += 1
            stopped = tf.reduce_any(tokens[:, None] == self.stop_tokens, -1)
            ended = ended | stopped | (step >= remaining)
            return step, ended, tokens, sampling.mark_seen(seen, tokens), all_tokens, all_log_probabilities, new

        state = (
            tf.constant(0),
            remaining < 1,
            tokens,
            seen,
            tf.zeros([steps, batch_size], tf.int32),
            tf.zeros([steps, batch_size], tf.float32),
            self.decoder.empty_cache(batch_size, steps),
        )
        *_, all_tokens, all_log_probabilities, new = tf.while_loop(unfinished, one_step, state, parallel_iterations=1)
        cache = [
            (tf.concat([key, new_key], 2), tf.concat([value, new_value], 2))
            for (key, value), (new_key, new_value) in zip(cache, new)
        ]
        return Steps(tf.transpose(all_tokens), tf.transpose(all_log_probabilities), cache)

    def beam_candidates(
        self, logits: tf.Tensor, scores: tf.Tensor, seen: tf.Tensor, penalty: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The best continuations of all beams of each prompt.

        Args:
            logits: [prompts × beams, vocabulary] float32.
            scores: [prompts, beams] float32, of the beams so far.
            seen: [prompts × beams, vocabulary] bool, or with no columns.
            penalty: scalar float32, repetition penalty.

        Returns:
            Scores with the new token, its own log probability, the beam's place and the token, each
            [prompts, (1 + stop tokens) × beams], best first.
        """
        prompts, beams = tf.shape(scores)[0], tf.shape(scores)[1]
        vocabulary_size = tf.shape(logits)[1]
        log_probabilities = tf.nn.log_softmax(logits)
        penalized = sampling.with_repetition_penalty(log_probabilities, seen, penalty[None])
        total = tf.reshape(penalized, [prompts, beams, vocabulary_size]) + scores[:, :, None]
        total = tf.reshape(total, [prompts, beams * vocabulary_size])
        count = tf.minimum((1 + len(self.stop_tokens)) * beams, beams * vocabulary_size)
        best, places = tf.math.top_k(total, count)
        own = tf.gather(tf.reshape(log_probabilities, [prompts, beams * vocabulary_size]), places, batch_dims=1)
        return best, own, places // vocabulary_size, places % vocabulary_size

    def beam_step(
        self, past: Cache, cache: Cache, slot: tf.Tensor, rows: tf.Tensor, tokens: tf.Tensor
    ) -> tuple[tf.Tensor, Cache]:
        """One token a beam.

        Args:
            past: the prompt's, one row for all beams, as `as_past` makes; only read.
            cache: the beams' tokens since; its slots are doubled when all are full.
            slot: scalar int32, how many of its slots are full.
            rows: [beams] int32, the beam that each one continues.
            tokens: [beams] int32.

        Returns:
            The logits of the next token [beams, vocabulary] and the cache.
        """
        slots = slots_of(cache)
        room = tf.cond(slot < slots, lambda: 0, lambda: tf.maximum(slots, FIRST_BEAM_SLOTS))
        widths = [[0, 0], [0, 0], [0, room], [0, 0]]
        cache = [(tf.pad(key, widths), tf.pad(value, widths)) for key, value in self.take_rows(cache, rows)]
        position = tf.shape(past[0][1])[2] + slot
        valid = tf.fill([1, position - slot + slots + room], True)
        positions = tf.fill([tf.size(tokens), 1], position)
        hidden, cache = self.decoder.call_with_cache(tokens[:, None], positions, cache, slot, valid, past)
        return self.decoder.logits(hidden[:, 0]), cache


class CompiledDecodeFunctions:
    """A decoder's graphs for generation: the functions of `DecodeFunctions`, each traced once.

    Args:
        decoder, stop_tokens: as `DecodeFunctions`'.
    """

    def __init__(self, decoder: Decoder, stop_tokens: tuple[int, ...]):
        functions = DecodeFunctions(decoder, stop_tokens)
        cache = cache_specs(decoder)
        self.prefill = graph(functions.prefill, INTEGER_TABLE, INTEGERS)
        self.take_rows = graph(functions.take_rows, cache, INTEGERS)
        self.steps = graph(
            functions.steps,
            cache,
            INTEGERS,
            INTEGERS,
            INTEGERS,
            INTEGERS,
            PARAMETERS,
            SEEN,
            INTEGER,
        )
        self.beam_candidates = graph(functions.beam_candidates, LOGITS, SCORES, SEEN, tf.TensorSpec([], tf.float32))
        self.as_past = graph(decoder.as_past, cache)
        self.beam_step = graph(functions.beam_step, past_specs(cache), cache, INTEGER, INTEGERS, INTEGERS)


def cache_specs(decoder: Decoder) -> list[tuple[tf.TensorSpec, tf.TensorSpec]]:
    """The `tf.TensorSpec`s of a decoder's cache, any number of rows and slots."""
    key, _ = decoder.empty_cache(1, 1)[0]
    slots = tf.TensorSpec([None, key.shape[1], None, key.shape[3]], key.dtype)
    return [(slots, slots)] * decoder.config.num_layers


def past_specs(cache: list[tuple[tf.TensorSpec, tf.TensorSpec]]) -> list[tuple[tf.TensorSpec, tf.TensorSpec]]:
    """The specs of what `as_past` makes of such a cache."""
    return [(tf.TensorSpec([*key.shape[:2], key.shape[3], None], key.dtype), value) for key, value in cache]


def window_start(length: Any, context: int) -> Any:
    """Where the window begins from which a text of `length` tokens is continued: 0 as long as the context holds it.

    When the context is full, the window begins anew with its last half, and fills up again. So where it begins
    depends on the length alone, not on how the text came to be.

    Args:
        length: an integer, or a tensor of them.
        context: the most tokens that the model reads.

    Returns:
        As `length`.
    """
    stride = context + 1 - max(1, context // 2)
    overflow = length - context + stride - 1
    windows = overflow // stride
    return tf.maximum(windows, 0) * stride if tf.is_tensor(length) else max(windows, 0) * stride


def slots_of(cache: Cache) -> tf.Tensor:
    """How many slots a cache has, a scalar int32."""
    return tf.shape(cache[0][0])[2]


def padded_left(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as one array [rows, longest] int32, zeros on the left, and their lengths [rows] int32."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros([len(rows), lengths.max()], np.int32)
    for number, row in enumerate(rows):
        ids[number, ids.shape[1] - len(row) :] = row
    return ids, lengths
