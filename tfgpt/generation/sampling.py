"""Sampling of the next token from logits: pure TensorFlow functions with settings for each row of the batch.

The same functions run in the generator's loop and in SavedModels: core operations only, no state. The random number of
a token is a hash of (seed, sample number, position), so a text does not depend on the other rows of its batch, on
padding, on the chunks of the loop or on the machine.

Filters map logits [batch, vocabulary] float32 to logits with -inf for removed tokens. They equal those of
`transformers.generation.logits_process`; `filter_logits` applies them in that library's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfgpt.generation.config import SamplingConfig

# The number of likely tokens that a filter sorts first; it sorts the whole vocabulary only if they are too few.
FEW_CANDIDATES = 256
# Logits divided by this temperature are far from float32's limits; lower temperatures act like it.
LOWEST_TEMPERATURE = 1e-6


class SamplingParameters(NamedTuple):
    """Settings of the rows of a batch, each a tensor [batch].

    Example:

    >>> SamplingParameters.of([(SamplingConfig(top_k=5), 0)]).top_k.numpy()
    array([5], dtype=int32)
    """

    temperature: tf.Tensor  # float32, 0 takes the most likely token
    top_k: tf.Tensor  # int32, 0 is off
    top_p: tf.Tensor  # float32, 1 is off
    min_p: tf.Tensor  # float32, 0 is off
    repetition_penalty: tf.Tensor  # float32, 1 is off
    seed: tf.Tensor  # int64
    sample: tf.Tensor  # int64, the number of the sample among those of one prompt and one seed

    @classmethod
    def of(cls, rows: list[tuple[SamplingConfig, int]]) -> SamplingParameters:
        """Returns the parameters of rows given as (settings, sample number)."""
        columns = [[getattr(config, name) for config, _ in rows] for name in cls._fields[:-1]]
        columns.append([sample for _, sample in rows])
        return cls(*(tf.constant(column, spec.dtype) for column, spec in zip(columns, cls.specs())))

    @classmethod
    def specs(cls) -> SamplingParameters:
        """Returns the `tf.TensorSpec`s of the parameters for input signatures."""
        dtypes = [tf.float32, tf.int32, tf.float32, tf.float32, tf.float32, tf.int64, tf.int64]
        return cls(*(tf.TensorSpec([None], dtype, name) for dtype, name in zip(dtypes, cls._fields)))


def choose(
    logits: tf.Tensor, parameters: SamplingParameters, seen: tf.Tensor, position: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses the next token of each row.

    Args:
        logits: [batch, vocabulary] float32, the model's logits.
        seen: [batch, vocabulary] bool, or [batch, 0] if no row has a repetition penalty.
        position: [batch] integers, the number of tokens before the next one.

    Returns:
        The tokens, [batch] int32, and their natural log probability under the model itself, without penalty,
        temperature and filters, [batch] float32.
    """
    penalized = with_repetition_penalty(logits, seen, parameters.repetition_penalty)
    likeliest = tf.argmax(penalized, -1, output_type=tf.int32)

    def sampled() -> tf.Tensor:
        numbers = uniform(parameters.seed, parameters.sample, position)
        tokens = draw(filter_logits(penalized, parameters), numbers)
        return tf.where(parameters.temperature > 0, tokens, likeliest)

    tokens = tf.cond(tf.reduce_any(parameters.temperature > 0), sampled, lambda: likeliest)
    log_probabilities = tf.gather(logits, tokens, batch_dims=1) - tf.reduce_logsumexp(logits, -1)
    return tokens, log_probabilities


def seen_tokens(token_ids: tf.Tensor, valid: tf.Tensor, vocabulary_size: int | tf.Tensor) -> tf.Tensor:
    """Returns the tokens of each row for the repetition penalty, [batch, vocabulary] bool.

    `token_ids` are [batch, length] int32; `valid` is [batch, length] bool, False on padding.
    """
    batch_size = tf.shape(token_ids)[0]
    rows = tf.broadcast_to(tf.range(batch_size)[:, None], tf.shape(token_ids))
    indices = tf.stack([rows, token_ids], -1)
    return tf.scatter_nd(indices, tf.cast(valid, tf.int32), [batch_size, vocabulary_size]) > 0


def mark_seen(seen: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Adds one token [batch] int32 per row to `seen`, [batch, vocabulary] bool or without columns."""
    return seen | tf.one_hot(tokens, tf.shape(seen)[1], True, False, dtype=tf.bool)


def with_repetition_penalty(logits: tf.Tensor, seen: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """Divides positive logits of seen tokens by the penalty and multiplies negative ones with it.

    Keskar et al., "CTRL" (2019), section 4.1, extended to negative logits by
    `transformers.RepetitionPenaltyLogitsProcessor`.

    Args:
        logits: [batch, vocabulary] float32.
        seen: [batch, vocabulary] bool, or [batch, 0] if no row has a penalty.
        penalty: [batch] float32.
    """

    def penalized() -> tf.Tensor:
        factor = penalty[:, None]
        return tf.where(seen, tf.where(logits < 0, logits * factor, logits / factor), logits)

    if seen.shape[1] is not None:
        return penalized() if seen.shape[1] else logits
    return tf.cond(tf.shape(seen)[1] > 0, penalized, lambda: logits)


def filter_logits(logits: tf.Tensor, parameters: SamplingParameters) -> tf.Tensor:
    """Applies temperature, top-k, top-p and min-p in this order; a filter that is off in every row costs nothing."""
    logits = apply_temperature(logits, parameters.temperature)
    # A row that takes the most likely token needs no filter.
    samples = parameters.temperature > 0
    top_k = tf.where(samples, parameters.top_k, 0)
    top_p = tf.where(samples, parameters.top_p, 1.0)
    min_p = tf.where(samples, parameters.min_p, 0.0)
    logits = _filter_if_any(top_k > 0, filter_top_k, logits, top_k)
    logits = _filter_if_any(top_p < 1, filter_top_p, logits, top_p)
    return _filter_if_any(min_p > 0, filter_min_p, logits, min_p)


def _filter_if_any(is_on: tf.Tensor, filter_rows: Callable, logits: tf.Tensor, setting: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_any(is_on), lambda: filter_rows(logits, setting), lambda: logits)


def apply_temperature(logits: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Divides logits [batch, vocabulary] by the temperature [batch]; `choose` ignores the result for 0."""
    return logits / tf.maximum(temperature, LOWEST_TEMPERATURE)[:, None]


def filter_top_k(logits: tf.Tensor, top_k: tf.Tensor) -> tf.Tensor:
    """Keeps the `top_k` [batch] most likely tokens and those tied with the last of them; 0 keeps all."""
    vocabulary_size = tf.shape(logits)[1]
    top_k = tf.minimum(tf.where(top_k > 0, top_k, vocabulary_size), vocabulary_size)
    limited = top_k < vocabulary_size

    def lowest(largest: tf.Tensor) -> tf.Tensor:
        return tf.gather(largest, tf.minimum(top_k, tf.shape(largest)[1]) - 1, batch_dims=1)

    few_are_enough = tf.reduce_all(~limited | (top_k <= tf.minimum(FEW_CANDIDATES, vocabulary_size)))
    return _keep_from(logits, limited, few_are_enough, lowest)


def filter_top_p(logits: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """Keeps the fewest most likely tokens whose probabilities sum to `top_p` [batch] or more; 1 keeps all.

    Holtzman et al., "The curious case of neural text degeneration" (2020). A token is kept if all more likely tokens
    have a probability below `top_p`. Tokens exactly as likely as the last kept one are kept too (`transformers` keeps
    those that its sort puts first).
    """
    log_total = tf.reduce_logsumexp(logits, -1, keepdims=True)
    limited = top_p < 1

    def lowest(largest: tf.Tensor) -> tf.Tensor:
        kept = tf.cumsum(tf.exp(largest - log_total), axis=1, exclusive=True) < top_p[:, None]
        kept = kept | (tf.range(tf.shape(largest)[1]) == 0)[None, :]
        return tf.reduce_min(tf.where(kept, largest, float("inf")), -1)

    few = tf.math.top_k(logits, tf.minimum(FEW_CANDIDATES, tf.shape(logits)[1])).values
    # The margin keeps rounding out of the choice of the branch: both branches sum the same numbers.
    few_are_enough = tf.reduce_all(~limited | (tf.reduce_sum(tf.exp(few - log_total), -1) > top_p + 1e-5))
    return _keep_from(logits, limited, few_are_enough, lowest)


def filter_min_p(logits: tf.Tensor, min_p: tf.Tensor) -> tf.Tensor:
    """Keeps tokens at least `min_p` [batch] times as probable as the most likely one; 0 keeps all.

    Nguyen et al., "Turning up the heat: min-p sampling" (2024).
    """
    highest = tf.reduce_max(logits, -1, keepdims=True)
    return tf.where(tf.exp(logits - highest) >= min_p[:, None], logits, -float("inf"))


def _keep_from(
    logits: tf.Tensor,
    limited: tf.Tensor,
    few_are_enough: tf.Tensor,
    lowest: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Keeps logits from the lowest one of each row; rows that are not `limited` keep all.

    `lowest` is a function of the largest logits of each row, sorted; if `few_are_enough`, of FEW_CANDIDATES of them.
    """
    vocabulary_size = tf.shape(logits)[1]

    def threshold(count: tf.Tensor) -> tf.Tensor:
        return tf.where(limited, lowest(tf.math.top_k(logits, count).values), -float("inf"))

    few = tf.minimum(FEW_CANDIDATES, vocabulary_size)
    thresholds = tf.cond(few_are_enough, lambda: threshold(few), lambda: threshold(vocabulary_size))
    return tf.where(logits >= thresholds[:, None], logits, -float("inf"))


def draw(logits: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Draws a token for each row, [batch] int32: the first id whose cumulative probability exceeds the number.

    `numbers` are [batch] float32 in [0, 1). A token with probability 0 is never drawn.
    """
    cumulative = tf.cumsum(tf.nn.softmax(logits), axis=1)
    # float32 additions miss the total of 1 slightly, so the last sum replaces it.
    target = numbers[:, None] * cumulative[:, -1:]
    return tf.reduce_sum(tf.cast(cumulative <= target, tf.int32), -1)


def uniform(seed: tf.Tensor, sample: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Returns numbers in [0, 1) that are a hash of three integers, with one round of SplitMix64 for each.

    SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014); the constants are
    those of its reference code, https://prng.di.unimi.it/splitmix64.c. `seed` and `sample` are [batch] int64,
    `position` is [batch] integers, the number of tokens before the one to draw. Returns [batch] float32, multiples
    of 2^-24.
    """
    state = tf.zeros_like(seed, tf.uint64)
    for part in (seed, sample, position):
        state = _splitmix64(tf.bitwise.bitwise_xor(state, tf.cast(tf.cast(part, tf.int64), tf.uint64)))
    top_bits = tf.bitwise.right_shift(state, tf.constant(40, tf.uint64))
    return tf.cast(tf.cast(top_bits, tf.int32), tf.float32) * 2.0**-24


def _splitmix64(state: tf.Tensor) -> tf.Tensor:
    state += tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, tf.constant(shift, tf.uint64)))
        state *= tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, tf.constant(31, tf.uint64)))
