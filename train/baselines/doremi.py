"""DoReMi's rule (arXiv 2305.10429, Algorithm 1): sources that a reference model does better on gain weight. It knows no target."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from train.mixture.simplex import softmax

STEP_SIZE, SMOOTHING = 1.0, 1e-3


def doremi_update(
    weights_K: Float64s, excess_K: Float64s, *, step_size: float = STEP_SIZE, smoothing: float = SMOOTHING
) -> Float64s:
    """(1 - smoothing) * normalised(weights * exp(step_size * excess)) + smoothing / K, shape (K,).

    Args:
        excess_K: mean over a source's tokens of max(loss - loss of the reference, 0) in nats, shape (K,).

    >>> doremi_update(np.array([.5, .5]), np.array([1.0, .0]), smoothing=0.1).round(4).tolist()
    [0.708, 0.292]
    """
    logits_K = np.log(np.maximum(weights_K, 1e-30)) + step_size * excess_K
    return (1 - smoothing) * softmax(logits_K) + smoothing / len(weights_K)
