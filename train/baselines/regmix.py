"""RegMix (arXiv 2407.01492): gradient-boosted trees from mixtures to target loss, and the mean of the best of many candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import lightgbm
import numpy as np

from fastmix_data.arrays import Float64s
from train.baselines.laws.law import Law
from train.mixture.constraints import MixtureConstraints

_NUM_TREES, _LEARNING_RATE = 1000, 1e-2
_NUM_CANDIDATES, _NUM_AVERAGED = 100_000, 128
_MOST_DRAWN, _NUM_PROJECTED = 10, 10_000
_CANDIDATES_AT_ONCE = 10_000
_DEFAULT_LEAF, _PROXIES_PER_LEAF = 20, 25
_PATIENCE = 3


@dataclass(frozen=True, eq=False)
class TreesLaw:
    """A sum of regression trees."""

    booster: lightgbm.Booster

    def predict(self, weights_NK: Float64s) -> Float64s:
        """Losses of mixtures, shape (N,)."""
        return np.asarray(self.booster.predict(weights_NK), dtype=np.float64)


class RegmixAnswer(NamedTuple):
    """The mixture, and what a reader must know of how it was found; empty if that was the usual way."""

    weights_K: Float64s
    note: str


def fit_trees(weights_NK: Float64s, losses_N: Float64s, *, seed: int) -> TreesLaw:
    """LightGBM with RegMix's settings (1000 trees, learning rate 0.01, else the defaults) but for the smallest leaf.

    They are meant for 512 proxies and need 40 to split at all, so `smallest_leaf` shrinks it with the swarm; bins hold single values.
    All trees are used: a swarm this small cannot spare RegMix's hold-out for early stopping.

    Args:
        weights_NK: the swarm's mixtures, shape (N, K).
        losses_N: target loss of the proxy trained on each, shape (N,).
    """
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
    return TreesLaw(lightgbm.train(settings, lightgbm.Dataset(weights_NK, losses_N), num_boost_round=_NUM_TREES))


def fit_trees_as_published(
    weights_NK: Float64s, losses_N: Float64s, *, stop_by: tuple[Float64s, Float64s] | None = None
) -> TreesLaw:
    """The fit of RegMix's published notebook, of which its rank correlations are.

    Args:
        stop_by: mixtures and losses that end the fit once three more trees do not help on them. The notebook stops by the very mixtures
            that it then ranks. All 1000 trees are grown when not given.
    """
    settings = {
        "objective": "regression",
        "metric": ["l1", "l2"],
        "learning_rate": _LEARNING_RATE,
        "seed": 42,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    training = lightgbm.Dataset(weights_NK, losses_N)
    if stop_by is None:
        return TreesLaw(lightgbm.train(settings, training, num_boost_round=_NUM_TREES))
    watched = lightgbm.Dataset(*stop_by, reference=training)
    stopping = lightgbm.early_stopping(_PATIENCE, verbose=False)
    return TreesLaw(lightgbm.train(settings, training, num_boost_round=_NUM_TREES, valid_sets=[watched], callbacks=[stopping]))


def regmix_weights(
    weights_NK: Float64s,
    losses_GN: Float64s,
    *,
    importance_G: Float64s,
    prior_K: Float64s,
    constraints: MixtureConstraints,
    seed: int,
    num_candidates: int = _NUM_CANDIDATES,
    num_averaged: int = _NUM_AVERAGED,
) -> RegmixAnswer:
    """The mean of the candidates with the smallest loss by trees that are fitted to a swarm, shape (K,), sum 1.

    Each target has trees of its own, and their predictions are averaged. RegMix has one target; trees of an average would have to find
    the splits of all its parts at once, and rank mixtures far worse.

    Args:
        weights_NK: the swarm's mixtures, shape (N, K).
        losses_GN: target losses of the proxy trained on each, shape (G, N).
    """
    return best_candidates(
        [fit_trees(weights_NK, losses_N, seed=seed) for losses_N in np.asarray(losses_GN)],
        importance_G=importance_G,
        prior_K=prior_K,
        constraints=constraints,
        seed=seed,
        num_candidates=num_candidates,
        num_averaged=num_averaged,
    )


def best_candidates(
    laws: Sequence[Law],
    *,
    importance_G: Float64s,
    prior_K: Float64s,
    constraints: MixtureConstraints,
    seed: int,
    num_candidates: int = _NUM_CANDIDATES,
    num_averaged: int = _NUM_AVERAGED,
) -> RegmixAnswer:
    """The mean of the candidates from Dirichlet(prior) with the smallest loss, among those that keep to the constraints.

    As long as fewer of these are found than are averaged, up to ten times as many are drawn. If even that is not enough, as it never is
    with a pinned share, 10,000 candidates are projected onto the constraints instead, and the answer says so.

    Args:
        laws: one of each target.
        importance_G: weights of the targets, shape (G,).
        prior_K: what candidates are drawn around, shape (K,), positive, sum 1.
        constraints: which the answer keeps to as well: they are convex.
    """

    def predict(weights_CK: Float64s) -> Float64s:
        losses_C: Float64s = importance_G @ np.array([law.predict(weights_CK) for law in laws])
        return losses_C

    rng = np.random.default_rng(seed)
    best_CK, predicted_C = np.empty((0, len(prior_K))), np.empty(0)
    num_drawn = num_allowed = 0
    while num_drawn < num_candidates or (num_allowed < num_averaged and num_drawn < _MOST_DRAWN * num_candidates):
        drawn_CK = rng.dirichlet(prior_K, size=min(_CANDIDATES_AT_ONCE, num_candidates))
        num_drawn += len(drawn_CK)
        drawn_CK = drawn_CK[constraints.allows(drawn_CK)]
        num_allowed += len(drawn_CK)
        if len(drawn_CK):
            best_CK, predicted_C = _best(best_CK, predicted_C, drawn_CK, predict=predict, num_kept=num_averaged)
    if num_allowed >= num_averaged:
        return RegmixAnswer(_mean(best_CK), "")
    drawn_CK = np.array([constraints.project(weights_K) for weights_K in rng.dirichlet(prior_K, size=_NUM_PROJECTED)])
    best_CK, _ = _best(best_CK, predicted_C, drawn_CK, predict=predict, num_kept=num_averaged)
    note = f"{num_allowed:,} of {num_drawn:,} candidates keep to the constraints; {_NUM_PROJECTED:,} were projected onto them instead"
    return RegmixAnswer(constraints.project(_mean(best_CK)), note)


def smallest_leaf(num_proxies: int) -> int:
    """Mixtures that a leaf must hold: a 25th of a swarm, up to LightGBM's default of 20, which RegMix's 512 proxies keep.

    With 32 proxies it is 1, so that a bad corner of the simplex can be a leaf of its own. In leaves of two it drags its neighbour along,
    and trees that make up for it promise losses far below any that was seen (4.08 nats, best of the swarm 4.78).

    >>> smallest_leaf(512), smallest_leaf(32), smallest_leaf(64), smallest_leaf(4096)
    (20, 1, 2, 20)
    """
    return max(1, min(_DEFAULT_LEAF, num_proxies // _PROXIES_PER_LEAF))


def _best(
    best_CK: Float64s, predicted_C: Float64s, drawn_CK: Float64s, *, predict: Callable[[Float64s], Float64s], num_kept: int
) -> tuple[Float64s, Float64s]:
    best_CK = np.concatenate([best_CK, drawn_CK])
    predicted_C = np.concatenate([predicted_C, predict(drawn_CK)])
    # Trees predict few distinct values; among equals the first drawn stay, so that the chunk size does not matter.
    order_C = np.argsort(predicted_C, kind="stable")[:num_kept]
    return best_CK[order_C], predicted_C[order_C]


def _mean(best_CK: Float64s) -> Float64s:
    mean_K: Float64s = best_CK.mean(axis=0)
    mean_K /= mean_K.sum()
    return mean_K
