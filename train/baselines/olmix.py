"""Olmix (allenai/olmix): a log-linear law of each target's loss, and the mixture that minimises them together, near a prior."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from train.baselines.laws.best_mixture import best_mixture, without_crumbs
from train.baselines.laws.log_linear import fit_log_linear
from train.mixture.constraints import MixtureConstraints

_SMALLEST_WEIGHT = 2e-3


def olmix_weights(
    weights_NK: Float64s,
    losses_GN: Float64s,
    *,
    importance_G: Float64s,
    prior_K: Float64s,
    constraints: MixtureConstraints,
    seed: int,
) -> Float64s:
    """The minimiser of sum_g w_g exp(A_g h) + 0.1 KL(h || prior) among the mixtures that meet the constraints, shape (K,).

    Args:
        weights_NK: the swarm's mixtures, shape (N, K).
        losses_GN: target losses of the proxy trained on each, shape (G, N).
        importance_G: weights of the targets, shape (G,), sum 1.
        prior_K: shape (K,), positive, sum 1.
        constraints: bounds of the mixture; Olmix's own are the epoch caps.
    """
    laws = [fit_log_linear(weights_NK, losses_N, seed=seed) for losses_N in np.asarray(losses_GN)]
    weights_K = best_mixture(laws, importance_G=importance_G, centre_K=prior_K, constraints=constraints)
    return without_crumbs(weights_K, smallest=_SMALLEST_WEIGHT, constraints=constraints)
