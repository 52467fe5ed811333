"""MixMin (arXiv 2502.10510): the mixture of one-source models under which the target's sequences are likeliest.

For every mixture of data the best model is the mixture of the sources' own best models, so that with these known the best mixture is a
convex problem: minimise -sum_n a_n log sum_k p_k P_k(x_n), whose gradient needs nothing but how likely each model finds each sequence.
"""

from __future__ import annotations

import math

import numpy as np

from fastmix_data.arrays import Float64s
from train.mixture.constraints import MixtureConstraints
from train.mixture.simplex import uniform

_MOST_STEPS, _TOLERANCE = 10_000, 1e-9  # nats a step must gain


def mixmin_weights(
    log_likelihoods_NK: Float64s, *, importance_N: Float64s, constraints: MixtureConstraints, labels_K: Float64s | None = None
) -> Float64s:
    """The minimiser of `mixmin_loss` among the mixtures that meet the constraints, shape (K,), from uniform.

    By expectation maximisation. MixMin's own exponentiated gradient goes to the same minimum; this needs no learning rate, and no step goes
    up, also within bounds: a step maximises sum_k c_k log p_k, c_k being the share of the target that model k answers for. Its conditions
    of optimality, p_k = clip(scale * c_k, floor_k, ceiling_k) with one scale for all that no group's bound holds, are those of the
    Kullback-Leibler projection of c.

    Args:
        log_likelihoods_NK: nats of each sequence under each one-source model, shape (N, K).
        importance_N: weight a of each sequence, shape (N,), not negative.
        labels_K: labels r that carry loss in a token of each source, shape (K,); all alike when not given. The mixture is of tokens, as
            are its bounds, and models learn from labels: p_k r_k / sum_j p_j r_j takes the place of p_k in the loss.
    """
    start_K = constraints.project(uniform(log_likelihoods_NK.shape[1]))
    # A model that may have no share must not set a sequence's scale: the others' likelihoods could all vanish beside its own.
    usable_NK = np.where(start_K > 0, log_likelihoods_NK, -np.inf)
    likelihoods_NK = np.exp(usable_NK - usable_NK.max(axis=1, keepdims=True))
    share_N = importance_N / importance_N.sum()
    carried_K = np.ones(len(start_K)) if labels_K is None else labels_K / labels_K.max()
    likelihoods_NK *= carried_K
    weights_K, best = start_K, np.inf
    for _ in range(_MOST_STEPS):
        mixed_N, carried = likelihoods_NK @ weights_K, float(carried_K @ weights_K)
        loss = math.log(carried) - float(share_N @ np.log(mixed_N))
        if best - loss < _TOLERANCE:
            break
        best = loss
        # Tokens whose labels are masked are drawn without being seen (Dempster, Laird and Rubin, 1977, on truncated data): for each label
        # there are (1 - carried) / carried of them.
        unseen_K = (1 - carried_K) / carried
        weights_K = constraints.project(weights_K * (likelihoods_NK.T @ (share_N / mixed_N) + unseen_K))
        weights_K = weights_K / weights_K.sum()
    return weights_K


def mixmin_loss(weights_K: Float64s, log_likelihoods_NK: Float64s, *, importance_N: Float64s) -> float:
    """-sum_n a_n log sum_k p_k P_k(x_n): nats per token where a_n is one over N times the loss tokens of sequence n."""
    top_N = log_likelihoods_NK.max(axis=1)
    with np.errstate(divide="ignore"):  # the only model that knows a sequence may have no share
        mixed_N = top_N + np.log(np.exp(log_likelihoods_NK - top_N[:, None]) @ weights_K)
    return -float(importance_N @ mixed_N)
