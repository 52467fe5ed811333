"""The mixtures that a swarm of proxies is trained on, as RegMix draws them (arXiv 2407.01492)."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s

_MIN_STRENGTH, _MAX_STRENGTH = 0.1, 5.0
_SMALLEST_WEIGHT = 2e-4
_SAME, _MAX_DRAWS = 1e-5, 100


def swarm_weights(prior_K: Float64s, *, num_mixtures: int, seed: int) -> Float64s:
    """Mixtures drawn from Dirichlet(prior * strength), strength log-spaced from 0.1 to 5, shape (N, K).

    As in RegMix's `synthesize_mixture.py`: weights below 2e-4 become 0, and a mixture drawn before is drawn again. Its bound of 15 times
    the prior and its square root of a prior by size are left out: the prior is the recipe's. The strengths follow a van der Corput
    sequence, so that the first n of a larger swarm are the swarm of n and cover the range as evenly.

    Args:
        prior_K: expectation of the mixtures, shape (K,), positive, sum 1.

    >>> swarm_weights(np.array([.5, .5]), num_mixtures=3, seed=0).sum(axis=1).tolist()
    [1.0, 1.0, 1.0]
    """
    rng = np.random.default_rng(seed)
    drawn_NK = np.empty((num_mixtures, len(prior_K)))
    for number in range(num_mixtures):
        strength = _MIN_STRENGTH * (_MAX_STRENGTH / _MIN_STRENGTH) ** _van_der_corput(number)
        for _ in range(_MAX_DRAWS):  # with very few sources there may be no new one
            # Small strengths draw corners, large ones the middle: a fit needs both, for the best mixture may be either.
            weights_K = rng.dirichlet(prior_K * strength)
            weights_K = np.where(weights_K < _SMALLEST_WEIGHT, 0.0, weights_K)
            drawn_NK[number] = weights_K / weights_K.sum()
            if not (np.abs(drawn_NK[:number] - drawn_NK[number]).sum(axis=1) < _SAME).any():
                break
    return drawn_NK


def _van_der_corput(number: int) -> float:
    """The bits of `number` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    value, place = 0.0, 0.5
    while number:
        value += place * (number & 1)
        number, place = number >> 1, place / 2
    return value
