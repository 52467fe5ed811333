"""The mixtures that trials choose between: estimators propose, trainings decide."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.search import SearchSection
from fastmix_data.shards.catalog import Catalog
from train.mixture.constraints import MixtureConstraints
from train.mixture.named_mixtures import stated_weights
from train.search.plan import SearchPlan

START, CONCENTRATED, SCORES, PROPORTIONAL = "start", "concentrated", "scores", "proportional"
_POWER = 2
_SAME = 0.01  # half the sum of differences: no short proxy tells mixtures apart that differ in one token of a hundred


def propose(plan: SearchPlan, *, start_K: Float64s, scores_K: Float64s) -> dict[str, Float64s]:
    """Mixtures to try by name, of shape (K,), within the constraints; the start first, and none that is nearly one before it.

    Args:
        start_K: where the search started.
        scores_K: what it came to along the scores.
    """
    return distinct(
        {
            START: start_K,
            SCORES: scores_K,
            **_concentrated(plan.search, start_K, plan.constraints),
            PROPORTIONAL: _proportional(plan.catalog, plan.constraints),
        }
    )


def _concentrated(search: SearchSection, start_K: Float64s, constraints: MixtureConstraints) -> dict[str, Float64s]:
    """The count's square: counts know what is alike, not how far a proxy should concentrate on it. Of a stated start nothing is known."""
    return {CONCENTRATED: constraints.concentrated(start_K, _POWER)} if search.initial_weights == "count" else {}


def _proportional(catalog: Catalog, constraints: MixtureConstraints) -> Float64s:
    """What most people would do, which the others have to be better than."""
    return constraints.project(stated_weights(catalog, "proportional", unit="tokens"))


def distinct(mixtures: dict[str, Float64s]) -> dict[str, Float64s]:
    """Without those that are nearly one before them.

    >>> list(distinct({"a": np.array([0.5, 0.5]), "b": np.array([0.501, 0.499]), "c": np.array([1.0, 0.0])}))
    ['a', 'c']
    """
    kept: dict[str, Float64s] = {}
    for name, weights_K in mixtures.items():
        if all(np.abs(weights_K - other_K).sum() / 2 > _SAME for other_K in kept.values()):
            kept[name] = weights_K
    return kept
