"""Weights on the simplex: from logits, tilted, raised to a power, kept off its edge."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s


def softmax(logits_K: Float64s) -> Float64s:
    """Weights for logits, shape (K,); the largest logit is taken off first, so that none overflows."""
    raised_K = np.exp(logits_K - logits_K.max())
    weights_K: Float64s = raised_K / raised_K.sum()
    return weights_K


def uniform(num_sources: int) -> Float64s:
    """Equal weights, shape (K,)."""
    return np.full(num_sources, 1 / num_sources)


def at_least_a_thousandth(weights_K: Float64s) -> Float64s:
    """Logits of weights near 0 would not come back: none is less than a thousandth of the uniform share."""
    raised_K = np.maximum(weights_K, 1e-3 / len(weights_K))
    normalised_K: Float64s = raised_K / raised_K.sum()
    return normalised_K


def to_the_power(weights_K: Float64s, power: float) -> Float64s:
    """A mixture more concentrated (power above 1) or less, normalised, none below a thousandth of the uniform share, shape (K,).

    >>> to_the_power(np.array([0.6, 0.3, 0.1]), 2).round(2).tolist()
    [0.78, 0.2, 0.02]
    """
    raised_K = weights_K**power
    return at_least_a_thousandth(raised_K / raised_K.sum())
