"""Choosing the next token from logits: pure TensorFlow functions with a setting for each row of the batch.

The same functions run in the engine's loop and inside a SavedModel: core operations only, no state. The random
number of a token is a hash of (seed, sample number, position), so that a text does not depend on the batch it is
in, on padding, on how the loop is cut into chunks, or on the machine.

The filters take and give logits [batch, vocabulary] float32, with -inf for what is filtered out, and are those of
`transformers.generation.logits_process`; `filtered` applies them in that library's order.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfgpt.generation.config import SamplingConfig

# How many likeliest tokens a filter sorts before it falls back on sorting the whole vocabulary.
FEW_CANDIDATES = 256
# Lower temperatures than this act as this one; logits divided by it stay far from float32's limits.
LOWEST_TEMPERATURE = 1e-6


class SamplingParameters(NamedTuple):
    """One value for each row of the batch, each a tensor [batch].

    Attributes:
        temperature: float32, 0 takes the likeliest token.
        top_k: int32, 0 is off.
        top_p: float32, 1 is off.
        min_p: float32, 0 is off.
        repetition_penalty: float32, 1 is off.
        seed: int64.
        sample: int64, the number of the sample among those of one prompt and one seed.
    """

    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor
    min_p: tf.Tensor
    repetition_penalty: tf.Tensor
    seed: tf.Tensor
    sample: tf.Tensor

    @classmethod
    def of(cls, rows: list[tuple[SamplingConfig, int]]) -> SamplingParameters:
        """The parameters of rows given as (settings, sample number)."""

        def column(name: str, dtype: tf.DType) -> tf.Tensor:
            return tf.constant([getattr(config, name) for config, _ in rows], dtype)

        return cls(
            temperature=column("temperature", tf.float32),
            top_k=column("top_k", tf.int32),
            top_p=column("top_p", tf.float32),
            min_p=column("min_p", tf.float32),
            repetition_penalty=column("repetition_penalty", tf.float32),
            seed=column("seed", tf.int64),
            sample=tf.constant([sample for _, sample in rows], tf.int64),
        )

    @classmethod
    def specs(cls) -> SamplingParameters:
        """The `tf.TensorSpec`s of the parameters, for input signatures."""
        kinds = [tf.float32, tf.int32, tf.float32, tf.float32, tf.float32, tf.int64, tf.int64]
        return cls(*(tf.TensorSpec([None], kind, name) for kind, name in zip(kinds, cls._fields)))


def uniform(seed: tf.Tensor, sample: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Numbers in [0, 1) that are a hash of three integers: each is mixed in by one round of SplitMix64.

    SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014); the constants are
    those of its reference code, https://prng.di.unimi.it/splitmix64.c.

    Args:
        seed: [batch] int64.
        sample: [batch] int64.
        position: [batch] integers, how many tokens stand before the one to be drawn.

    Returns:
        [batch] float32, multiples of 2^-24.
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


def seen_tokens(token_ids: tf.Tensor, valid: tf.Tensor, vocabulary_size: int | tf.Tensor) -> tf.Tensor:
    """Which tokens each row already has, for the repetition penalty.

    Args:
        token_ids: [batch, length] int32.
        valid: [batch, length] bool, False on padding.
        vocabulary_size: the number of columns wanted.

    Returns:
        [batch, vocabulary] bool.
    """
    batch_size = tf.shape(token_ids)[0]
    rows = tf.broadcast_to(tf.range(batch_size)[:, None], tf.shape(token_ids))
    indices = tf.stack([rows, token_ids], -1)
    return tf.scatter_nd(indices, tf.cast(valid, tf.int32), [batch_size, vocabulary_size]) > 0


def mark_seen(seen: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """`seen` [batch, vocabulary] bool (or with no columns) with one more token [batch] int32 a row."""
    return seen | tf.one_hot(tokens, tf.shape(seen)[1], True, False, dtype=tf.bool)


def apply_repetition_penalty(logits: tf.Tensor, seen: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """Seen tokens' logits are divided by the penalty where positive, multiplied where negative.

    Keskar et al., "CTRL" (2019), section 4.1, as `transformers.RepetitionPenaltyLogitsProcessor` does it for
    logits of both signs.

    Args:
        logits: [batch, vocabulary] float32.
        seen: [batch, vocabulary] bool.
        penalty: [batch] float32.
    """
    penalty = penalty[:, None]
    return tf.where(seen, tf.where(logits < 0, logits * penalty, logits / penalty), logits)


def with_repetition_penalty(logits: tf.Tensor, seen: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """As `apply_repetition_penalty`; a `seen` without columns, [batch, 0], says that no row has a penalty."""
    if seen.shape[1] is not None:
        return apply_repetition_penalty(logits, seen, penalty) if seen.shape[1] else logits
    return tf.cond(tf.shape(seen)[1] > 0, lambda: apply_repetition_penalty(logits, seen, penalty), lambda: logits)


def apply_temperature(logits: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Logits [batch, vocabulary] divided by the temperature [batch], which `choose` reads as greedy where it is 0."""
    return logits / tf.maximum(temperature, LOWEST_TEMPERATURE)[:, None]


def filter_top_k(logits: tf.Tensor, top_k: tf.Tensor) -> tf.Tensor:
    """Keeps the `top_k` [batch] likeliest tokens and those tied with the last of them; 0 keeps all."""
    vocabulary_size = tf.shape(logits)[1]
    top_k = tf.minimum(tf.where(top_k > 0, top_k, vocabulary_size), vocabulary_size)
    limited = top_k < vocabulary_size
    few = tf.minimum(FEW_CANDIDATES, vocabulary_size)
    enough = tf.reduce_all(~limited | (top_k <= few))

    def threshold(count: tf.Tensor) -> tf.Tensor:
        largest = tf.math.top_k(logits, count).values
        last = tf.gather(largest, tf.minimum(top_k, count) - 1, batch_dims=1)
        return tf.where(limited, last, -float("inf"))

    lowest = tf.cond(enough, lambda: threshold(few), lambda: threshold(vocabulary_size))
    return _keep(logits, logits >= lowest[:, None])


def filter_top_p(logits: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """Keeps the fewest likeliest tokens whose probabilities sum to `top_p` [batch] or more; 1 keeps all.

    Holtzman et al., "The curious case of neural text degeneration" (2020). A token is kept when those likelier than
    it have less than `top_p` together. Tokens exactly as likely as the last one kept are kept too
    (`transformers` keeps whichever its sort puts first).
    """
    vocabulary_size = tf.shape(logits)[1]
    log_total = tf.reduce_logsumexp(logits, -1, keepdims=True)
    limited = top_p < 1
    few = tf.minimum(FEW_CANDIDATES, vocabulary_size)

    def sorted_probabilities(count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        largest = tf.math.top_k(logits, count).values
        return largest, tf.exp(largest - log_total)

    def threshold(count: tf.Tensor) -> tf.Tensor:
        largest, probabilities = sorted_probabilities(count)
        kept = tf.cumsum(probabilities, axis=1, exclusive=True) < top_p[:, None]
        kept = kept | (tf.range(count) == 0)[None, :]
        last = tf.reduce_min(tf.where(kept, largest, float("inf")), -1)
        return tf.where(limited, last, -float("inf"))

    _, few_probabilities = sorted_probabilities(few)
    # The margin keeps the choice of branch clear of rounding: the branches sum the same numbers.
    enough = tf.reduce_all(~limited | (tf.reduce_sum(few_probabilities, -1) > top_p + 1e-5))
    lowest = tf.cond(enough, lambda: threshold(few), lambda: threshold(vocabulary_size))
    return _keep(logits, logits >= lowest[:, None])


def filter_min_p(logits: tf.Tensor, min_p: tf.Tensor) -> tf.Tensor:
    """Keeps tokens at least `min_p` [batch] times as probable as the likeliest; 0 keeps all.

    Nguyen et al., "Turning up the heat: min-p sampling" (2024).
    """
    highest = tf.reduce_max(logits, -1, keepdims=True)
    return _keep(logits, tf.exp(logits - highest) >= min_p[:, None])


def _keep(logits: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    return tf.where(kept, logits, -float("inf"))


def filtered(logits: tf.Tensor, parameters: SamplingParameters) -> tf.Tensor:
    """Temperature, top-k, top-p and min-p, in this order; a filter that is off in every row costs nothing.

    Args:
        logits: [batch, vocabulary] float32, repetition penalty applied.
        parameters: the settings of each row.

    Returns:
        [batch, vocabulary] float32.
    """
    logits = apply_temperature(logits, parameters.temperature)
    # A row that takes the likeliest token needs no filter, whatever its settings say.
    draws = parameters.temperature > 0
    top_k = tf.where(draws, parameters.top_k, 0)
    top_p = tf.where(draws, parameters.top_p, 1.0)
    min_p = tf.where(draws, parameters.min_p, 0.0)
    logits = _where_any(top_k > 0, lambda: filter_top_k(logits, top_k), logits)
    top_k_kept = logits
    logits = _where_any(top_p < 1, lambda: filter_top_p(top_k_kept, top_p), logits)
    top_p_kept = logits
    return _where_any(min_p > 0, lambda: filter_min_p(top_p_kept, min_p), logits)


def _where_any(condition: tf.Tensor, changed, unchanged: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_any(condition), changed, lambda: unchanged)


def draw(logits: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Draws a token for each row: the first whose cumulative probability, in the order of ids, exceeds the number.

    Args:
        logits: [batch, vocabulary] float32.
        numbers: [batch] float32 in [0, 1).

    Returns:
        [batch] int32; never a token with probability 0.
    """
    cumulative = tf.cumsum(tf.nn.softmax(logits), axis=1)
    # The last sum stands for 1, which float32 additions miss by a little.
    target = numbers[:, None] * cumulative[:, -1:]
    return tf.reduce_sum(tf.cast(cumulative <= target, tf.int32), -1)


def choose(
    logits: tf.Tensor, parameters: SamplingParameters, seen: tf.Tensor, position: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The next token of each row.

    Args:
        logits: [batch, vocabulary] float32, as the model gives them.
        parameters: the settings of each row.
        seen: [batch, vocabulary] bool; it may have no columns, [batch, 0], where no row has a repetition penalty.
        position: [batch] integers, how many tokens stand before the one to be chosen.

    Returns:
        The tokens, [batch] int32, and their natural log probability under the model itself, before any penalty,
        temperature or filter, [batch] float32.
    """
    penalized = with_repetition_penalty(logits, seen, parameters.repetition_penalty)
    likeliest = tf.argmax(penalized, -1, output_type=tf.int32)

    def drawn() -> tf.Tensor:
        numbers = uniform(parameters.seed, parameters.sample, position)
        tokens = draw(filtered(penalized, parameters), numbers)
        return tf.where(parameters.temperature > 0, tokens, likeliest)

    tokens = tf.cond(tf.reduce_any(parameters.temperature > 0), drawn, lambda: likeliest)
    log_probabilities = tf.gather(logits, tokens, batch_dims=1) - tf.reduce_logsumexp(logits, -1)
    return tokens, log_probabilities
