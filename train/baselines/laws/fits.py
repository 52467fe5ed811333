"""The fits by name, and what they are worth on mixtures that they were not fitted to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from fastmix_data.arrays import Float64s
from train.baselines.laws.additive import fit_additive
from train.baselines.laws.law import Law
from train.baselines.laws.log_linear import fit_log_linear
from train.baselines.laws.simple_laws import NearestLaw, fit_ridge

Fit = Callable[[Float64s, Float64s], Law]  # of a swarm's mixtures (N, K) and one target's positive losses (N,)
_NUM_FOLDS = 10
_SEED = 0


class HeldOutFigures(NamedTuple):
    """How well predictions of mixtures that were held out agree with what was measured.

    Attributes:
        rank_correlation: Spearman's; 0 where all predictions are alike.
        error: root mean square of prediction less measurement, in the unit of the losses.
    """

    rank_correlation: float
    error: float


def fit_named(name: str) -> Fit:
    """The fit of this name: additive, log-linear, trees, ridge or nearest."""
    if name == "trees":
        from train.baselines.regmix import fit_trees  # lightgbm takes a second to import

        return lambda weights_NK, losses_N: fit_trees(weights_NK, losses_N, seed=_SEED)
    fits: dict[str, Fit] = {
        "additive": fit_additive,
        "log-linear": lambda weights_NK, losses_N: fit_log_linear(weights_NK, losses_N, seed=_SEED),
        "ridge": fit_ridge,
        "nearest": NearestLaw,
    }
    return fits[name]


def cross_validated(fit: Fit, weights_NK: Float64s, losses_N: Float64s) -> Float64s:
    """Each mixture's loss as predicted by a fit to the other folds, shape (N,); ten folds, or one of each mixture where there are fewer."""
    num = len(losses_N)
    fold_N = np.random.default_rng(_SEED).permutation(num) % min(_NUM_FOLDS, num)
    predicted_N = np.empty(num)
    for fold in range(fold_N.max() + 1):
        out_N = fold_N == fold
        predicted_N[out_N] = fit(weights_NK[~out_N], losses_N[~out_N]).predict(weights_NK[out_N])
    return predicted_N


def rank_correlation(predicted_N: Float64s, measured_N: Float64s) -> float:
    """Spearman's rank correlation; 0 where either is constant.

    >>> rank_correlation(np.array([1., 2., 3.]), np.array([10., 20., 15.])), rank_correlation(np.ones(3), np.arange(3.))
    (0.5, 0.0)
    """
    if np.ptp(predicted_N) == 0 or np.ptp(measured_N) == 0:
        return 0.0
    return float(spearmanr(predicted_N, measured_N).statistic)


def figures_of(predicted_N: Float64s, measured_N: Float64s) -> HeldOutFigures:
    """Rank correlation and error of predictions."""
    error = float(np.sqrt(((predicted_N - measured_N) ** 2).mean()))
    return HeldOutFigures(rank_correlation(predicted_N, measured_N), error)
