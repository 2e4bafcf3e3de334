"""The graphs of generation: one pass over the prompts, then loops of one-token steps over the cache.

Rows are padded on the left, so that all rows write the same slot of the cache in a step. Each graph is traced once:
batch size, prompt length, cache length and number of steps are dynamic. A step copies the cache that it writes to (see
`attention.write_slots`), so a loop writes a short cache of its steps and only reads the past; both are joined when the
loop ends (docs/measurements.md has the times).
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

INTEGER = tf.TensorSpec([], tf.int32)
INTEGERS = tf.TensorSpec([None], tf.int32)
INTEGER_TABLE = tf.TensorSpec([None, None], tf.int32)
LOGITS = SCORES = tf.TensorSpec([None, None], tf.float32)
SEEN = tf.TensorSpec([None, None], tf.bool)
PARAMETERS = sampling.SamplingParameters.specs()


def graph(function: Callable, *signature: Any) -> Callable:
    """Returns a function as a graph that is traced once, without autograph."""
    return tf.function(function, input_signature=signature, autograph=False)


choose = graph(sampling.choose, LOGITS, PARAMETERS, SEEN, INTEGERS)


class Steps(NamedTuple):
    """The state after some decoding steps, and the tokens that they chose."""

    tokens: tf.Tensor  # [batch, steps] int32
    log_probabilities: tf.Tensor  # [batch, steps] float32
    cache: Cache  # with one more slot per step


class DecodeFunctions:
    """The steps of decoding as functions of tensors, for `CompiledDecodeFunctions` and for larger graphs.

    Args:
        decoder: the model; each call reads its current weights.

    Example:

    >>> from tfgpt.model.config import DecoderConfig
    >>> decoder = Decoder(DecoderConfig(vocabulary_size=16, num_layers=1, hidden_dim=8, num_query_heads=2))
    >>> logits, cache = DecodeFunctions(decoder, stop_tokens=(0,)).prefill(tf.constant([[3, 5]]), tf.constant([2]))
    >>> logits.shape
    TensorShape([1, 16])
    """

    def __init__(self, decoder: Decoder, stop_tokens: tuple[int, ...]):
        self.decoder = decoder
        self.stop_tokens = np.array(stop_tokens, np.int32)

    def prefill(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, Cache]:
        """Runs prompts; returns the logits of the next token, [batch, vocabulary] float32, and `length` slots of cache.

        Args:
            token_ids: [batch, length] int32, padded on the left.
            lengths: [batch] int32, the numbers of tokens without padding, at least 1.
        """
        hidden, cache = self._read(token_ids, (tf.shape(token_ids)[1] - lengths)[:, None])
        return self.decoder.logits(hidden[:, -1]), cache

    def hidden_states(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Returns the last hidden states [batch, length, width] of [batch, length] int32 without left padding."""
        return self._read(token_ids, tf.constant(0))[0]

    def _read(self, token_ids: tf.Tensor, padding: tf.Tensor) -> tuple[tf.Tensor, Cache]:
        batch_size, length = tf.shape(token_ids)[0], tf.shape(token_ids)[1]
        slots = tf.range(length)[None]
        cache = self.decoder.empty_cache(batch_size, length)
        return self.decoder.call_with_cache(token_ids, slots - padding, cache, tf.constant(0), slots >= padding)

    def take_rows(self, cache: Cache, rows: tf.Tensor) -> Cache:
        """Returns the cache of the rows [new batch] int32, which may omit, repeat and reorder."""
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
        """Generates up to `steps` tokens for each row; ends early once every row has ended.

        One column per step is returned; a row's columns after the token that ends it are undefined.

        Args:
            cache: full up to the token before `tokens`.
            padding: [batch] int32, slots of padding at each row's start.
            tokens: [batch] int32, each row's last token, not yet in the cache.
            position: [batch] int32, the number of tokens before the next one, for its random number.
            remaining: [batch] int32, the most new tokens of each row.
            seen: [batch, vocabulary] bool, or [batch, 0] if no row has a repetition penalty.
            steps: scalar int32.
        """
        batch_size = tf.shape(tokens)[0]
        first_slot = cache_length(cache)
        past = self.decoder.as_past(cache)
        valid = tf.range(first_slot + steps)[None] >= padding[:, None]

        def unfinished(step, ended, *_):
            return (step < steps) & ~tf.reduce_all(ended)

        def one_step(step, ended, tokens, seen, all_tokens, all_log_probabilities, new):
            positions = (first_slot + step - padding)[:, None]
            hidden, new = self.decoder.call_with_cache(tokens[:, None], positions, new, step, valid, past)
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
        """Returns the best continuations of all beams of each prompt, best first.

        They are the score with the new token, its own log probability, the number of the beam and the token, each
        [prompts, (1 + stop tokens) × beams].

        Args:
            logits: [prompts × beams, vocabulary] float32.
            scores: [prompts, beams] float32, the scores of the beams.
            seen: [prompts × beams, vocabulary] bool, or without columns.
            penalty: scalar float32, repetition penalty.
        """
        prompts, beams = tf.shape(scores)[0], tf.shape(scores)[1]
        vocabulary_size = tf.shape(logits)[1]
        log_probabilities = tf.nn.log_softmax(logits)
        penalized = sampling.with_repetition_penalty(log_probabilities, seen, penalty[None])
        total = tf.reshape(penalized, [prompts, beams, vocabulary_size]) + scores[:, :, None]
        total = tf.reshape(total, [prompts, beams * vocabulary_size])
        count = tf.minimum((1 + len(self.stop_tokens)) * beams, beams * vocabulary_size)
        best, places = tf.math.top_k(total, count)
        unpenalized = tf.reshape(log_probabilities, [prompts, beams * vocabulary_size])
        best_log_probabilities = tf.gather(unpenalized, places, batch_dims=1)
        return best, best_log_probabilities, places // vocabulary_size, places % vocabulary_size

    def beam_step(
        self, past: Cache, cache: Cache, slot: tf.Tensor, rows: tf.Tensor, tokens: tf.Tensor
    ) -> tuple[tf.Tensor, Cache]:
        """Adds one token to each beam; returns the logits of the next token [beams, vocabulary] and the cache.

        Args:
            past: the prompt's cache, one row for all beams, in the layout of `as_past`; only read.
            cache: the tokens of the beams after the prompt; a full cache is doubled.
            slot: scalar int32, the number of its full slots.
            rows: [beams] int32, the beam that each beam continues.
            tokens: [beams] int32.
        """
        slots = cache_length(cache)
        room = tf.cond(slot < slots, lambda: 0, lambda: tf.maximum(slots, FIRST_BEAM_SLOTS))
        widths = [[0, 0], [0, 0], [0, room], [0, 0]]
        cache = [(tf.pad(key, widths), tf.pad(value, widths)) for key, value in self.take_rows(cache, rows)]
        position = tf.shape(past[0][1])[2] + slot
        valid = tf.fill([1, position - slot + slots + room], True)
        positions = tf.fill([tf.size(tokens), 1], position)
        hidden, cache = self.decoder.call_with_cache(tokens[:, None], positions, cache, slot, valid, past)
        return self.decoder.logits(hidden[:, 0]), cache


class CompiledDecodeFunctions:
    """The functions of `DecodeFunctions` as graphs, each traced once."""

    def __init__(self, decoder: Decoder, stop_tokens: tuple[int, ...]):
        functions = DecodeFunctions(decoder, stop_tokens)
        cache = cache_specs(decoder)
        # `as_past` transposes the keys.
        past = [(tf.TensorSpec([*key.shape[:2], key.shape[3], None], key.dtype), value) for key, value in cache]
        self.prefill = graph(functions.prefill, INTEGER_TABLE, INTEGERS)
        self.take_rows = graph(functions.take_rows, cache, INTEGERS)
        self.steps = graph(functions.steps, cache, *[INTEGERS] * 4, PARAMETERS, SEEN, INTEGER)
        self.beam_candidates = graph(functions.beam_candidates, LOGITS, SCORES, SEEN, tf.TensorSpec([], tf.float32))
        self.as_past = graph(decoder.as_past, cache)
        self.beam_step = graph(functions.beam_step, past, cache, INTEGER, INTEGERS, INTEGERS)


def cache_specs(decoder: Decoder) -> list[tuple[tf.TensorSpec, tf.TensorSpec]]:
    """Returns the `tf.TensorSpec`s of a decoder's cache with any number of rows and slots."""
    key, _ = decoder.empty_cache(1, 1)[0]
    slots = tf.TensorSpec([None, key.shape[1], None, key.shape[3]], key.dtype)
    return [(slots, slots)] * decoder.config.num_layers


def cache_length(cache: Cache) -> tf.Tensor:
    return tf.shape(cache[0][0])[2]


def window_start(length: Any, context: int) -> Any:
    """Returns the start of the window from which a text of `length` tokens is continued: 0 while it fits in `context`.

    When the context is full, a new window starts with its last half and fills up again. The start depends only on the
    length, not on the way in which the text was generated. The length is an integer or a tensor of integers.
    """
    stride = context + 1 - max(1, context // 2)
    windows = (length - context + stride - 1) // stride
    return tf.maximum(windows, 0) * stride if tf.is_tensor(length) else max(windows, 0) * stride
