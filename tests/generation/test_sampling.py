"""The filters against `transformers`' processors, the random numbers, and what drawing promises."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation import sampling
from tfgpt.generation.config import SamplingConfig

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


def random_logits(rows: int = 5, vocabulary_size: int = 1000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 3.0, [rows, vocabulary_size]).astype(np.float32)


def theirs(processor, logits: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
    return processor(None if ids is None else torch.tensor(ids), torch.tensor(logits)).numpy()


def filled(rows: int, value: float, dtype=tf.float32) -> tf.Tensor:
    return tf.fill([rows], tf.constant(value, dtype))


def parameters(*configs: SamplingConfig) -> sampling.SamplingParameters:
    return sampling.SamplingParameters.of([(config, 0) for config in configs])


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_equals_transformers(penalty):
    logits, ids = random_logits(), np.random.default_rng(1).integers(0, 1000, [5, 40]).astype(np.int32)
    expected = theirs(transformers.RepetitionPenaltyLogitsProcessor(penalty), logits, ids.astype(np.int64))
    seen = sampling.seen_tokens(tf.constant(ids), tf.ones([5, 40], tf.bool), 1000)
    ours = sampling.with_repetition_penalty(tf.constant(logits), seen, filled(5, penalty))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_padding_is_not_a_seen_token_and_marking_adds_one():
    ids = tf.constant([[9, 9, 1, 2]])
    seen = sampling.seen_tokens(ids, tf.constant([[False, False, True, True]]), 10)
    assert np.flatnonzero(seen[0]).tolist() == [1, 2]
    assert np.flatnonzero(sampling.mark_seen(seen, tf.constant([7]))[0]).tolist() == [1, 2, 7]


FILTERS = {
    "apply_temperature": (transformers.TemperatureLogitsWarper, tf.float32, [0.7]),
    "filter_top_k": (transformers.TopKLogitsWarper, tf.int32, [1, 7, 256, 257, 999, 1000, 5000]),
    "filter_top_p": (transformers.TopPLogitsWarper, tf.float32, [0.01, 0.5, 0.9, 0.98]),
    "filter_min_p": (transformers.MinPLogitsWarper, tf.float32, [0.01, 0.1, 0.9, 1.0]),
}


# Flatter logits make top-p keep more than the few candidates that are sorted first.
@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FILTERS for value in FILTERS[name][2]])
def test_a_filter_equals_transformers(name, value, scale):
    theirs_class, dtype, _ = FILTERS[name]
    logits = random_logits() * np.float32(scale)
    found = getattr(sampling, name)(tf.constant(logits), filled(5, value, dtype))
    np.testing.assert_allclose(found, theirs(theirs_class(value), logits), rtol=1e-6)


def test_top_k_keeps_ties_as_transformers_does():
    logits = np.float32([[1, 3, 2, 2, 2, 0]])
    expected = theirs(transformers.TopKLogitsWarper(2), logits)
    np.testing.assert_array_equal(sampling.filter_top_k(tf.constant(logits), tf.constant([2])), expected)
    assert np.isfinite(expected).sum() == 4


def test_all_filters_together_equal_transformers_in_its_order_row_by_row():
    configs = [
        SamplingConfig(temperature=0.7, top_k=40, top_p=0.8, min_p=0.05),
        SamplingConfig(temperature=1.5, top_k=0, top_p=0.95, min_p=0.0),
        SamplingConfig(temperature=0.3, top_k=3, top_p=1.0, min_p=0.2),
        SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
        SamplingConfig(temperature=1.0, top_k=700, top_p=0.5, min_p=0.0),
    ]
    logits = random_logits()
    ours = sampling.filter_logits(tf.constant(logits), parameters(*configs)).numpy()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    for row, config in enumerate(configs):
        settings = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p")}
        generation = transformers.GenerationConfig(do_sample=True, **settings, min_p=config.min_p or None)
        processors = model._get_logits_processor(generation)
        expected = theirs(lambda ids, scores: processors(ids, scores), logits[row : row + 1])  # noqa: B023
        np.testing.assert_allclose(ours[row : row + 1], expected, rtol=1e-6)


def test_random_numbers_are_splitmix64():
    # The reference generator started at 1234567 gives these first numbers (Rosetta Code, "Pseudo-random numbers/
    # Splitmix64"); one round of ours from the states it goes through must give the same.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    golden = 0x9E3779B97F4A7C15
    states = tf.constant([(1234567 + step * golden) % 2**64 for step in range(4)], tf.uint64)
    assert sampling._splitmix64(states).numpy().tolist() == expected


def test_random_numbers_are_uniform_and_independent_of_their_neighbours():
    count = 100_000
    positions = tf.range(count)
    zeros = tf.zeros([count], tf.int64)
    by_position = sampling.uniform(zeros + 5, zeros, positions).numpy()
    by_seed = sampling.uniform(tf.range(count, dtype=tf.int64), zeros, zeros).numpy()
    by_sample = sampling.uniform(zeros + 5, tf.range(count, dtype=tf.int64), zeros).numpy()
    for numbers in (by_position, by_seed, by_sample):
        assert numbers.min() >= 0 and numbers.max() < 1
        # Kolmogorov-Smirnov: a uniform source goes beyond 1.95 / sqrt(count) once in a thousand times.
        distance = np.abs(np.sort(numbers) - (np.arange(count) + 0.5) / count).max()
        assert distance < 1.95 / count**0.5
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.01
    assert abs(np.corrcoef(by_position, by_seed)[0, 1]) < 0.01
    assert abs(np.corrcoef(by_position, by_sample)[0, 1]) < 0.01


def test_negative_and_huge_seeds_are_seeds_of_their_own():
    seeds = tf.constant([0, -1, 2**63 - 1, -(2**63), 2**32], tf.int64)
    numbers = sampling.uniform(seeds, tf.zeros_like(seeds), tf.zeros_like(seeds)).numpy()
    assert len(set(numbers.tolist())) == 5


def test_drawn_frequencies_are_the_probabilities():
    probabilities = np.array([0.5, 0.0, 0.3, 0.15, 0.05], np.float32)
    count = 50_000
    with np.errstate(divide="ignore"):
        logits = tf.repeat(tf.constant(np.log(probabilities))[None], count, 0)
    numbers = sampling.uniform(tf.zeros([count], tf.int64), tf.zeros([count], tf.int64), tf.range(count))
    counts = np.bincount(sampling.draw(logits, numbers).numpy(), minlength=5)
    assert counts[1] == 0
    # Chi-squared with 3 degrees of freedom is above 16.27 once in a thousand times.
    possible = probabilities > 0
    expected = probabilities[possible] * count
    assert ((counts[possible] - expected) ** 2 / expected).sum() < 16.27


def test_the_largest_random_number_never_draws_a_token_that_was_filtered_out():
    logits = tf.constant([[0.3, -0.7, 0.1, -np.inf, -np.inf]] * 2, tf.float32)
    assert sampling.draw(logits, tf.constant([1 - 2.0**-24, 0.0])).numpy().tolist() == [2, 0]


def test_temperature_zero_takes_the_likeliest_beside_rows_that_draw():
    logits = tf.constant(random_logits(rows=2))
    configs = SamplingConfig(temperature=0.0), SamplingConfig(temperature=5.0, top_k=0, seed=3)
    no_penalty = tf.zeros([2, 0], tf.bool)
    tokens, log_probabilities = sampling.choose(logits, parameters(*configs), no_penalty, tf.constant([4, 4]))
    assert tokens[0] == np.argmax(logits[0])
    alone, _ = sampling.choose(logits[1:], parameters(configs[1]), no_penalty[1:], tf.constant([4]))
    assert tokens[1] == alone[0]
    expected = torch.log_softmax(torch.tensor(logits.numpy()), -1)[range(2), tokens.numpy()]
    np.testing.assert_allclose(log_probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_the_models_own_whatever_the_settings(temperature):
    logits = random_logits()
    config = SamplingConfig(temperature=temperature, top_k=5, top_p=0.5, min_p=0.2, repetition_penalty=1.8)
    seen = sampling.seen_tokens(tf.argsort(-tf.constant(logits))[:, :3], tf.ones([5, 3], tf.bool), 1000)
    tokens, found = sampling.choose(tf.constant(logits), parameters(*[config] * 5), seen, tf.range(5))
    expected = torch.log_softmax(torch.tensor(logits), -1)[range(5), tokens.numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sampling_at_a_tiny_temperature_is_greedy():
    logits = tf.constant(random_logits())
    tokens, _ = sampling.choose(
        logits, parameters(*[SamplingConfig(temperature=1e-30)] * 5), tf.zeros([5, 0], tf.bool), tf.range(5)
    )
    np.testing.assert_array_equal(tokens, np.argmax(logits, -1))


def test_choosing_is_the_same_in_graph_and_under_xla():
    logits = tf.constant(random_logits())
    configs = parameters(
        SamplingConfig(top_k=5),
        SamplingConfig(top_k=0, top_p=0.7),
        SamplingConfig(temperature=0.0),
        SamplingConfig(min_p=0.1, repetition_penalty=1.5),
        SamplingConfig(top_k=300, seed=-7),
    )
    seen = sampling.seen_tokens(tf.argsort(-logits)[:, :3], tf.ones([5, 3], tf.bool), 1000)
    eager, _ = sampling.choose(logits, configs, seen, tf.range(5))
    graph, _ = tf.function(sampling.choose)(logits, configs, seen, tf.range(5))
    compiled, _ = tf.function(sampling.choose, jit_compile=True)(logits, configs, seen, tf.range(5))
    np.testing.assert_array_equal(eager, graph)
    np.testing.assert_array_equal(eager, compiled)


def test_a_stop_string_with_a_backslash_is_cautioned_about():
    # ggml-org/llama.cpp#1362: it never comes, and the text goes on to its limit.
    [caution] = SamplingConfig(stop=("\\n", "\n", "C:\\x")).cautions()
    assert caution == r"--stop=\n: a backslash and a letter, not a line break; in most shells $'\n' is one"
