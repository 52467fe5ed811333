"""Olmix (allenai/olmix): a log-linear law of each target's loss, and the mixture that minimises them together, near a prior.

The law is f(x) = exp(c) + exp(A x) (Ye et al., "Data Mixing Laws", arXiv 2403.16952). The problem that follows is convex.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from fastmix_data.arrays import Float64s
from train.mixture.constraints import MixtureConstraints
from train.mixture.simplex import softmax

KL_STRENGTH = 0.1
_HUBER_DELTA = 0.02
_FLOORS = np.linspace(-2, 1.5, 10)  # starts of c, as in Olmix
_STARTS_PER_FLOOR = 3
_TINY, _STILL, _MAX_STEPS = 1e-30, 1e-9, 5000
_MOST_NATS = 30.0  # that a step may move two weights apart


@dataclass(frozen=True, eq=False)
class LogLinearLaw:
    """exp(floor) + exp(slope . x), the loss of one target in nats.

    Attributes:
        slope_K: shape (K,).
    """

    floor: float
    slope_K: Float64s

    def predict(self, weights_NK: Float64s) -> Float64s:
        """Losses of mixtures, shape (N,)."""
        predicted_N: Float64s = np.exp(self.floor) + np.exp(weights_NK @ self.slope_K)
        return predicted_N


def fit_law(weights_NK: Float64s, losses_N: Float64s, *, seed: int) -> LogLinearLaw:
    """The law with the smallest sum of Huber losses (delta 0.02) over a swarm: the best of 30 starts of L-BFGS.

    Args:
        weights_NK: mixtures of the swarm, shape (N, K).
        losses_N: one target's loss of the proxy trained on each, shape (N,).
    """
    rng = np.random.default_rng(seed)
    best_value, best = np.inf, np.zeros(weights_NK.shape[1] + 1)
    # Not convex in floor and slope together, so many starts.
    for floor in np.repeat(_FLOORS, _STARTS_PER_FLOOR):
        start = np.concatenate([[floor], rng.uniform(-1, 1, weights_NK.shape[1])])
        found = minimize(_huber, start, args=(weights_NK, losses_N), jac=True, method="L-BFGS-B", options={"maxiter": 500})
        if found.fun < best_value:
            best_value, best = float(found.fun), found.x
    return LogLinearLaw(float(best[0]), best[1:])


def _huber(parameters: Float64s, weights_NK: Float64s, losses_N: Float64s) -> tuple[float, Float64s]:
    """Sum of Huber losses and its gradient in (c, A)."""
    floor, slope_K = parameters[0], parameters[1:]
    varying_N = np.exp(np.minimum(weights_NK @ slope_K, 50.0))  # a long step of the line search must not overflow
    residual_N = np.exp(min(floor, 50.0)) + varying_N - losses_N
    small_N = np.abs(residual_N) <= _HUBER_DELTA
    value = np.where(small_N, residual_N**2 / 2, _HUBER_DELTA * (np.abs(residual_N) - _HUBER_DELTA / 2)).sum()
    pull_N = np.clip(residual_N, -_HUBER_DELTA, _HUBER_DELTA)
    gradient = np.concatenate([[np.exp(min(floor, 50.0)) * pull_N.sum()], weights_NK.T @ (pull_N * varying_N)])
    return float(value), gradient


def olmix_weights(
    slopes_GK: Float64s,
    *,
    importance_G: Float64s,
    prior_K: Float64s,
    constraints: MixtureConstraints,
    kl_strength: float = KL_STRENGTH,
) -> Float64s:
    """The minimiser of sum_g w_g exp(A_g x) + kl * KL(x || prior) among the mixtures that meet the constraints, shape (K,).

    By mirror descent with backtracking: the step x' = argmin <g, x> + kl * KL(x || prior) + KL(x || x_t) / rate is a closed form
    followed by the Kullback-Leibler projection onto the constraints.

    Args:
        slopes_GK: A of each target's law, shape (G, K).
        importance_G: weights w of the targets, shape (G,), sum 1.
        prior_K: shape (K,), positive, sum 1.
        constraints: bounds of the mixture; Olmix's own are the epoch caps.
        kl_strength: 0.1 in Olmix.
    """
    weights_K = constraints.project(prior_K)
    inverse_rate = 1.0
    for _ in range(_MAX_STEPS):
        terms_G = importance_G * np.exp(slopes_GK @ weights_K)
        gradient_K = terms_G @ slopes_GK
        while True:
            moved_K = _mirror_step(weights_K, gradient_K, prior_K, inverse_rate=inverse_rate, kl_strength=kl_strength)
            moved_K = constraints.project(moved_K)
            gained = (importance_G * np.exp(slopes_GK @ moved_K)).sum() - terms_G.sum() - gradient_K @ (moved_K - weights_K)
            # Accepted once the divergence bounds what the linear model missed, so that no step goes up (relative smoothness, Lu,
            # Freund and Nesterov, 2018). At the optimum both sides are rounding, hence the slack.
            if gained <= inverse_rate * _divergence(moved_K, weights_K) + 1e-14:
                break
            inverse_rate *= 2
        change = np.abs(moved_K - weights_K).max()
        # A longer step would take weights below the smallest that the projection can tell apart.
        weights_K, inverse_rate = moved_K, max(inverse_rate / 1.5, np.ptp(gradient_K) / _MOST_NATS)
        if change < _STILL:
            break
    return weights_K


def _mirror_step(
    weights_K: Float64s, gradient_K: Float64s, prior_K: Float64s, *, inverse_rate: float, kl_strength: float
) -> Float64s:
    logits_K = inverse_rate * np.log(np.maximum(weights_K, _TINY)) + kl_strength * np.log(prior_K) - gradient_K
    logits_K = logits_K / (inverse_rate + kl_strength)
    return softmax(logits_K)


def _divergence(left_K: Float64s, right_K: Float64s) -> float:
    ratio_K = np.log(np.maximum(left_K, _TINY) / np.maximum(right_K, _TINY))
    return float(left_K @ ratio_K)
