"""The rows of each source in a block."""

from __future__ import annotations

import numpy as np
import pytest

from tfgpt.pipeline.mixture import BLOCK, block_counts


@pytest.mark.parametrize(
    "weights", [[0.5, 0.5], [0.7, 0.2, 0.1], [1.0 - 3e-6, 1e-6, 1e-6, 1e-6], [1 / 3, 1 / 3, 1 / 3]]
)
def test_a_block_is_full_and_no_source_is_more_than_a_row_from_its_share_or_missing(weights: list[float]):
    counts = block_counts(np.array(weights))
    assert counts.sum() == BLOCK and counts.min() >= 1
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - weight * BLOCK) <= 1 or count == 1 or max(weights) == weight
