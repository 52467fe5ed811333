"""DoGE's rule (arXiv 2310.15393), out-of-domain variant: sources whose gradients lie along the target's gain weight."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from train.mixture.simplex import softmax

MU = 0.01  # the paper's range is 0.01 to 0.05; the smallest moves furthest in a short run
_LARGEST = 5.0


def doge_scores(alignment_K: Float64s, gradient_norm_K: Float64s, *, learning_rate: float) -> Float64s:
    """clip(lr * <g_k, v> / mean |g|, 0, 5 lr), shape (K,).

    Args:
        alignment_K: inner product of each source's gradient with the target's, shape (K,).
        gradient_norm_K: norm of each source's gradient, shape (K,); NaN for one not seen yet.

    >>> doge_scores(np.array([2.0, -1.0, 40.0]), np.array([1.0, 2.0, 3.0]), learning_rate=0.1).tolist()
    [0.1, 0.0, 0.5]
    """
    relative_K = alignment_K / max(float(np.nanmean(gradient_norm_K)), 1e-30)
    # The paper has the rate in the update: the mixture moves least where the proxy does, in warm-up and at the end.
    scores_K: Float64s = learning_rate * np.clip(relative_K, 0.0, _LARGEST)
    return scores_K


def doge_update(weights_K: Float64s, scores_K: Float64s, *, mu: float = MU) -> Float64s:
    """The next weights, proportional to weights * exp(scores / mu), shape (K,).

    >>> doge_update(np.array([.5, .5]), np.array([.02, .0]), mu=0.02).round(4).tolist()
    [0.7311, 0.2689]
    """
    logits_K = np.log(np.maximum(weights_K, 1e-30)) + scores_K / mu
    return softmax(logits_K)
