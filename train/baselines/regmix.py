"""RegMix (arXiv 2407.01492): gradient-boosted trees from mixtures to target loss, and the mean of the best of many candidates."""

from __future__ import annotations

import lightgbm
import numpy as np

from fastmix_data.arrays import Float64s

_NUM_TREES, _LEARNING_RATE = 1000, 1e-2
_NUM_CANDIDATES, _NUM_AVERAGED = 100_000, 128
_CANDIDATES_AT_ONCE = 10_000
_DEFAULT_LEAF, _PROXIES_PER_LEAF = 20, 25


def regmix_weights(
    weights_NK: Float64s,
    losses_N: Float64s,
    *,
    prior_K: Float64s,
    seed: int,
    num_candidates: int = _NUM_CANDIDATES,
    num_averaged: int = _NUM_AVERAGED,
) -> Float64s:
    """The mean of the candidates with the smallest predicted loss, shape (K,), sum 1.

    LightGBM with RegMix's settings (1000 trees, learning rate 0.01, else the defaults). They are meant for 512 proxies and need 40 to split
    at all, so `smallest_leaf` shrinks it with the swarm; bins hold single values. All
    trees are used: a swarm this small cannot spare RegMix's hold-out for early stopping. Candidates are drawn from Dirichlet(prior).

    Args:
        weights_NK: the swarm's mixtures, shape (N, K).
        losses_N: target loss of the proxy trained on each, shape (N,).
        prior_K: what candidates are drawn around, shape (K,), positive, sum 1.
    """
    booster = _fit(weights_NK, losses_N, seed=seed)
    rng = np.random.default_rng(seed)
    best_CK, predicted_C = np.empty((0, len(prior_K))), np.empty(0)
    for start in range(0, num_candidates, _CANDIDATES_AT_ONCE):
        drawn_CK = rng.dirichlet(prior_K, size=min(_CANDIDATES_AT_ONCE, num_candidates - start))
        best_CK = np.concatenate([best_CK, drawn_CK])
        predicted_C = np.concatenate([predicted_C, np.asarray(booster.predict(drawn_CK))])
        # Trees predict few distinct values; among equals the first drawn stay, so that the chunk size does not matter.
        order_C = np.argsort(predicted_C, kind="stable")[:num_averaged]
        best_CK, predicted_C = best_CK[order_C], predicted_C[order_C]
    mean_K: Float64s = best_CK.mean(axis=0)
    mean_K /= mean_K.sum()
    return mean_K


def smallest_leaf(num_proxies: int) -> int:
    """Mixtures that a leaf must hold: a 25th of a swarm, up to LightGBM's default of 20, which RegMix's 512 proxies keep.

    With 32 proxies it is 1, so that a bad corner of the simplex can be a leaf of its own. In leaves of two it drags its neighbour along,
    and trees that make up for it promise losses far below any that was seen (4.08 nats, best of the swarm 4.78).

    >>> smallest_leaf(512), smallest_leaf(32), smallest_leaf(64), smallest_leaf(4096)
    (20, 1, 2, 20)
    """
    return max(1, min(_DEFAULT_LEAF, num_proxies // _PROXIES_PER_LEAF))


def _fit(weights_NK: Float64s, losses_N: Float64s, *, seed: int) -> lightgbm.Booster:
    settings = {
        "objective": "regression",
        "learning_rate": _LEARNING_RATE,
        "min_data_in_leaf": smallest_leaf(len(losses_N)),
        # The default puts three mixtures in a bin or more, and no split would set a bad corner apart from its neighbours.
        "min_data_in_bin": 1,
        "seed": seed,
        # Both, or sums and so trees depend on the number of threads.
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    return lightgbm.train(settings, lightgbm.Dataset(weights_NK, losses_N), num_boost_round=_NUM_TREES)
