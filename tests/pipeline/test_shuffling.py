"""Shuffled orders are permutations without a visible pattern, and sources come in their shares."""

import itertools

import numpy as np
import pytest

from tfgpt.pipeline.shuffling import BLOCK, EpochShuffle, Mixture, block_counts, mixture_weights


@pytest.mark.parametrize("count", [2_000, 20_000])
def test_neighbouring_windows_epochs_and_seeds_do_not_correlate(count):
    def permutation(seed: int, epoch: int) -> np.ndarray:
        order = EpochShuffle(count, 1, seed)
        number = np.arange(epoch * count, (epoch + 1) * count)
        return (order.starts(number) - order.offset(epoch)) % count

    permutations = [permutation(seed, epoch) for seed, epoch in itertools.product((0, 1, 2**32), (0, 1, 2))]
    for order in permutations:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    pairs = [*itertools.combinations(permutations, 2), *((order[:-1], order[1:]) for order in permutations)]
    correlations = [np.corrcoef(*pair)[0, 1] for pair in pairs]
    # Chance gives a standard deviation of 1 / sqrt(n); with 4 rounds of the cipher some are 0.2.
    assert np.abs(correlations).max() < 5 / np.sqrt(count)


def test_windows_of_a_terabyte_are_numbered_without_overflow():
    targets, length = 10**13, 2048
    order = EpochShuffle(targets, length, seed=1)
    number = np.array([0, 1, order.windows - 1, order.windows, 10**12])
    starts = order.starts(number)
    assert starts.dtype == np.int64 and len(set(starts)) == 5
    assert starts.min() >= 0 and starts.max() < targets and starts.max() > 2**31


def test_mixture_weights_and_temperature_are_the_shares_of_rows():
    np.testing.assert_allclose(mixture_weights([900, 100], ("1", "3")), [0.25, 0.75])
    np.testing.assert_allclose(mixture_weights([900, 100]), [0.9, 0.1])
    # mT5's alpha is 1 / temperature: 900^0.5 / (900^0.5 + 100^0.5) = 30 / 40.
    np.testing.assert_allclose(mixture_weights([900, 100], temperature=2), [0.75, 0.25])
    mixture = Mixture([90, 10], np.array([0.25, 0.75]), seed=1)
    drawn = [mixture.row(number) for number in range(2 * BLOCK)]
    assert sum(source == 0 for source, _, _ in drawn) == BLOCK // 2
    for source, size in enumerate((90, 10)):
        of_source = [(epoch, row) for number, epoch, row in drawn if number == source]
        for epoch in range(len(of_source) // size):
            rows = [row for _, row in of_source[epoch * size : (epoch + 1) * size]]
            assert sorted(rows) == list(range(size)) and rows != list(range(size))
    tiny = Mixture([5, 5], np.array([0.9999, 0.0001]), seed=1)
    assert {source for source, _, _ in map(tiny.row, range(BLOCK))} == {0, 1}


@pytest.mark.parametrize(
    "weights", [[0.5, 0.5], [0.7, 0.2, 0.1], [1.0 - 3e-6, 1e-6, 1e-6, 1e-6], [1 / 3, 1 / 3, 1 / 3]]
)
def test_a_block_is_full_and_no_source_is_more_than_a_row_from_its_share_or_missing(weights: list[float]):
    counts = block_counts(np.array(weights))
    assert counts.sum() == BLOCK and counts.min() >= 1
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - weight * BLOCK) <= 1 or count == 1 or max(weights) == weight
