"""The additive law of mixtures (arXiv 2507.09404 and 2606.08167): sources add up to what a model has learned of the target.

L(h) = E + 1 / sum_j c_j h_j^gamma with c > 0 and 0 < gamma < 1. The sum is concave, so the loss is convex in the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from fastmix_data.arrays import Float64s

_ADDED = 1e-4  # to every weight: a source that is left out has a finite slope
_SPREAD_RIDGE, _EXPONENT_RIDGE = 1e-2, 0.1
_STARTS = ((0.5, 0.5), (0.2, 2.0))  # gamma, and how far E lies below the smallest loss in standard deviations
_MAX_STEPS = 1000
_MOST_NATS = 60.0  # of an exponent: a long step of the line search must not overflow


@dataclass(frozen=True, eq=False)
class AdditiveLaw:
    """E + 1 / sum_j c_j (h_j + 1e-4)^gamma.

    Attributes:
        floor: E, in the unit of the losses.
        log_gain_K: log c, shape (K,).
        exponent: gamma.
    """

    floor: float
    log_gain_K: Float64s
    exponent: float

    def predict(self, weights_NK: Float64s) -> Float64s:
        """Losses of mixtures, shape (N,)."""
        learned_N: Float64s = self._terms(weights_NK).sum(axis=1)
        return self.floor + 1 / learned_N

    def gradient(self, weights_K: Float64s) -> Float64s:
        """-gamma c_k (h_k + 1e-4)^(gamma - 1) / sum^2, shape (K,)."""
        terms_K = self._terms(weights_K)
        slope_K: Float64s = -self.exponent * terms_K / (weights_K + _ADDED) / terms_K.sum() ** 2
        return slope_K

    def _terms(self, weights: Float64s) -> Float64s:
        terms: Float64s = np.exp(self.log_gain_K + self.exponent * np.log(weights + _ADDED))
        return terms


def fit_additive(weights_NK: Float64s, losses_N: Float64s) -> AdditiveLaw:
    """The law of least squares with small ridges, the better of two starts of L-BFGS.

    Losses are brought to mean 0 and deviation 1 first, so that the ridges mean the same for nats, bits and benchmark scores. They are
    on the spread of log c and on logit gamma; without the latter a swarm no larger than the number of sources drives gamma to 1.

    Args:
        weights_NK: mixtures of the swarm, shape (N, K).
        losses_N: one target's loss of the proxy trained on each, shape (N,).
    """
    mean, scale = float(losses_N.mean()), float(losses_N.std()) or 1.0
    scaled_N, log_weights_NK = (losses_N - mean) / scale, np.log(weights_NK + _ADDED)
    best_value, best = np.inf, np.empty(0)
    for exponent, gap in _STARTS:
        # All sources alike, with the sum at which the mean loss is right.
        total = np.exp(exponent * log_weights_NK).sum(axis=1).mean()
        level = -np.log(total * (gap - scaled_N.min()))
        start = np.concatenate([[np.log(gap)], np.full(weights_NK.shape[1], level), [np.log(exponent / (1 - exponent))]])
        found = minimize(
            _squares, start, args=(log_weights_NK, scaled_N), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_STEPS}
        )
        if found.fun < best_value:
            best_value, best = float(found.fun), found.x
    floor = mean + scale * (scaled_N.min() - np.exp(best[0]))
    return AdditiveLaw(float(floor), best[1:-1] - np.log(scale), _sigmoid(best[-1]))


def _squares(parameters: Float64s, log_weights_NK: Float64s, scaled_N: Float64s) -> tuple[float, Float64s]:
    """Squared residuals with the ridges, and the gradient in (log of the gap below the smallest loss, log c, logit gamma)."""
    log_gap, log_gain_K, logit = min(parameters[0], _MOST_NATS / 2), parameters[1:-1], parameters[-1]
    gap, exponent = np.exp(log_gap), _sigmoid(logit)
    terms_NK = np.exp(np.clip(log_gain_K + exponent * log_weights_NK, -_MOST_NATS, _MOST_NATS))
    learned_N = terms_NK.sum(axis=1)
    residual_N = scaled_N.min() - gap + 1 / learned_N - scaled_N
    spread_K = log_gain_K - log_gain_K.mean()
    value = residual_N @ residual_N + _SPREAD_RIDGE * spread_K @ spread_K + _EXPONENT_RIDGE * logit**2
    pull_N = -2 * residual_N / learned_N**2
    by_exponent = (terms_NK * log_weights_NK).sum(axis=1) @ pull_N * exponent * (1 - exponent)
    gradient = np.concatenate(
        [
            [-2 * gap * residual_N.sum()],
            terms_NK.T @ pull_N + 2 * _SPREAD_RIDGE * spread_K,
            [by_exponent + 2 * _EXPONENT_RIDGE * logit],
        ]
    )
    return float(value), gradient


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
