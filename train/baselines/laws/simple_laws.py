"""Fits that assume next to nothing, to measure laws against: a plane, and the nearest mixture that was tried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmix_data.arrays import Float64s

_RIDGES = np.logspace(-4, 1, 11)


@dataclass(frozen=True, eq=False)
class LinearLaw:
    """level + slope . h, the loss of one target.

    Attributes:
        slope_K: shape (K,).
    """

    level: float
    slope_K: Float64s

    def predict(self, weights_NK: Float64s) -> Float64s:
        """Losses of mixtures, shape (N,)."""
        predicted_N: Float64s = self.level + weights_NK @ self.slope_K
        return predicted_N

    def gradient(self, weights_K: Float64s) -> Float64s:
        """The slope, shape (K,)."""
        return self.slope_K * np.ones_like(weights_K)


def fit_ridge(weights_NK: Float64s, losses_N: Float64s) -> LinearLaw:
    """The plane of ridge regression; of eleven strengths the one with the smallest generalised cross-validation.

    Args:
        weights_NK: mixtures of the swarm, shape (N, K).
        losses_N: one target's loss of the proxy trained on each, shape (N,).
    """
    mean_K, mean = weights_NK.mean(axis=0), losses_N.mean()
    left_NR, size_R, right_RK = np.linalg.svd(weights_NK - mean_K, full_matrices=False)
    along_R, num = left_NR.T @ (losses_N - mean), len(losses_N)
    best_score, best_K = np.inf, np.zeros(weights_NK.shape[1])
    for ridge in _RIDGES:
        kept_R = size_R**2 / (size_R**2 + ridge)
        residual_N = losses_N - mean - left_NR @ (kept_R * along_R)
        score = residual_N @ residual_N / max(num - 1 - kept_R.sum(), 1e-9) ** 2
        if score < best_score:
            best_score, best_K = score, right_RK.T @ (kept_R / np.maximum(size_R, 1e-12) * along_R)
    return LinearLaw(float(mean - mean_K @ best_K), best_K)


@dataclass(frozen=True, eq=False)
class NearestLaw:
    """The loss of the swarm's mixture with the smallest total variation to the one asked for.

    Attributes:
        swarm_NK: shape (N, K).
        losses_N: shape (N,).
    """

    swarm_NK: Float64s
    losses_N: Float64s

    def predict(self, weights_NK: Float64s) -> Float64s:
        """Losses of mixtures, shape (N,)."""
        nearest_N = [np.abs(self.swarm_NK - weights_K).sum(axis=1).argmin() for weights_K in weights_NK]
        return self.losses_N[nearest_N]
