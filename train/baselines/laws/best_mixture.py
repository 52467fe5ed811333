"""The mixture that is best by convex laws, near a centre and within bounds: mirror descent on the simplex."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmix_data.arrays import Float64s
from train.baselines.laws.law import SmoothLaw
from train.mixture.constraints import MixtureConstraints
from train.mixture.simplex import softmax

KL_STRENGTH = 0.1  # nats of loss for a nat of divergence, as in Olmix
_TINY, _STILL, _MAX_STEPS = 1e-30, 1e-9, 5000
_MOST_NATS = 30.0  # that a step may move two weights apart
_ROUNDING = 1e-14


def best_mixture(
    laws: Sequence[SmoothLaw],
    *,
    importance_G: Float64s,
    centre_K: Float64s,
    constraints: MixtureConstraints,
    kl_strength: float = KL_STRENGTH,
) -> Float64s:
    """The minimiser of sum_g w_g L_g(h) + kl * KL(h || centre) among the mixtures that meet the constraints, shape (K,).

    With backtracking: the step h' = argmin <g, h> + kl * KL(h || centre) + KL(h || h_t) / rate is a closed form followed by the
    Kullback-Leibler projection onto the constraints. The pull to the centre keeps the answer from one source, which is where laws of
    a single target tend and where they know least.

    Args:
        laws: one of each target, convex.
        importance_G: weights w of the targets, shape (G,).
        centre_K: shape (K,), positive, sum 1.
    """
    weights_K = constraints.project(centre_K)
    inverse_rate = 1.0
    value = _value(laws, importance_G, weights_K)
    for _ in range(_MAX_STEPS):
        gradient_K = sum(
            (w * law.gradient(weights_K) for w, law in zip(importance_G, laws, strict=True)), np.zeros_like(weights_K)
        )
        while True:
            moved_K = _mirror_step(weights_K, gradient_K, centre_K, inverse_rate=inverse_rate, kl_strength=kl_strength)
            moved_K = constraints.project(moved_K)
            moved_value = _value(laws, importance_G, moved_K)
            missed = moved_value - value - gradient_K @ (moved_K - weights_K)
            # Accepted once the divergence bounds what the linear model missed, so that no step goes up (relative smoothness, Lu,
            # Freund and Nesterov, 2018). At the optimum both sides are rounding, hence the slack.
            if missed <= inverse_rate * _divergence(moved_K, weights_K) + _ROUNDING * (1 + abs(value)):
                break
            inverse_rate *= 2
        change = np.abs(moved_K - weights_K).max()
        # A longer step would take weights below the smallest that the projection can tell apart.
        weights_K, value, inverse_rate = moved_K, moved_value, max(inverse_rate / 1.5, np.ptp(gradient_K) / _MOST_NATS)
        if change < _STILL:
            break
    return weights_K


def without_crumbs(weights_K: Float64s, *, smallest: float, constraints: MixtureConstraints) -> Float64s:
    """Weights below the smallest become 0 where no bound asks for them, shape (K,), sum 1.

    >>> free = MixtureConstraints(("a", "b"), np.zeros(2), np.ones(2), {}, np.zeros(2, bool), np.zeros(2, bool))
    >>> without_crumbs(np.array([.999, .001]), smallest=.002, constraints=free).tolist()
    [1.0, 0.0]
    """
    kept_K = np.where(weights_K < smallest, 0.0, weights_K)
    return constraints.project(kept_K / kept_K.sum())


def _value(laws: Sequence[SmoothLaw], importance_G: Float64s, weights_K: Float64s) -> float:
    return float(sum(w * law.predict(weights_K[None])[0] for w, law in zip(importance_G, laws, strict=True)))


def _mirror_step(
    weights_K: Float64s, gradient_K: Float64s, centre_K: Float64s, *, inverse_rate: float, kl_strength: float
) -> Float64s:
    logits_K = inverse_rate * np.log(np.maximum(weights_K, _TINY)) + kl_strength * np.log(centre_K) - gradient_K
    logits_K = logits_K / (inverse_rate + kl_strength)
    return softmax(logits_K)


def _divergence(left_K: Float64s, right_K: Float64s) -> float:
    ratio_K = np.log(np.maximum(left_K, _TINY) / np.maximum(right_K, _TINY))
    return float(left_K @ ratio_K)
