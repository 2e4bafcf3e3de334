"""RoPE frequencies, with the scalings for longer contexts. No TensorFlow."""

from __future__ import annotations

import numpy as np


def inverse_frequencies(
    head_dim: int,
    max_wavelength: float,
    scaling: str = "none",
    scaling_factor: float = 1.0,
    original_length: int = 8192,
    low_frequency_factor: float = 1.0,
    high_frequency_factor: float = 4.0,
) -> np.ndarray:
    """Returns the rotation per position of each pair of channels: [head_dim / 2] float32, in radians.

    Args:
        max_wavelength: the base, theta.
        scaling: "none", "linear" or "llama3". "linear" slows all channels by `scaling_factor` (Chen et al. 2023).
            "llama3" slows channels with fewer than `low_frequency_factor` rotations in `original_length` tokens, leaves
            those with more than `high_frequency_factor`, and interpolates between (Llama 3.1's `apply_scaling`).
    """
    inverse = max_wavelength ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling == "linear":
        inverse = inverse / scaling_factor
    elif scaling == "llama3":
        turns = original_length * inverse / (2 * np.pi)
        kept = np.clip((turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor), 0.0, 1.0)
        inverse = (1 - kept) * inverse / scaling_factor + kept * inverse
    return inverse.astype(np.float32)
