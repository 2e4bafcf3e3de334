"""RoPE's frequencies, with the scalings that stretch a context. No TensorFlow."""

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
    """How far each pair of channels turns from one position to the next: [head_dim / 2] float32, in radians.

    Args:
        head_dim: width of a head.
        max_wavelength: theta.
        scaling: "none"; "linear", where all turn `scaling_factor` times slower (Chen et al. 2023); or "llama3", where
            those do that turn less than `low_frequency_factor` times in `original_length` tokens, those that turn more
            than `high_frequency_factor` times stay, and it passes over between (Llama 3.1's `apply_scaling`).
        scaling_factor, original_length, low_frequency_factor, high_frequency_factor: of the scaling.
    """
    inverse = max_wavelength ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling == "linear":
        inverse = inverse / scaling_factor
    elif scaling == "llama3":
        turns = original_length * inverse / (2 * np.pi)
        kept = np.clip((turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor), 0.0, 1.0)
        inverse = (1 - kept) * inverse / scaling_factor + kept * inverse
    return inverse.astype(np.float32)
