"""The mixtures that trials choose between: estimators propose, trainings decide."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from train.mixture.named_mixtures import stated_weights
from train.search.plan import SearchPlan
from train.search.start import Start

START, SCORES, COUNT, CONCENTRATED, PROPORTIONAL = "start", "scores", "count", "concentrated", "proportional"
_POWER = 2
_SAME = 0.01  # half the sum of differences: no short proxy tells mixtures apart that differ in one token of a hundred


def propose(plan: SearchPlan, *, start: Start, scores_K: Float64s) -> dict[str, Float64s]:
    """Mixtures to try by name, of shape (K,), within the constraints; the start first, and none that is nearly one before it.

    Args:
        scores_K: what the search came to along the scores.
    """
    counted_K, bounds = start.counted_K, plan.constraints
    # Counts know what is alike, not how far a proxy should concentrate on it.
    squared = {CONCENTRATED: bounds.concentrated(counted_K, _POWER)}
    by_counts = squared if plan.search.initial_weights == "count" else {COUNT: counted_K}
    # What most people would do, which the others have to be better than.
    proportional_K = bounds.project(stated_weights(plan.catalog, "proportional", unit="tokens"))
    return distinct({START: start.initial_K, SCORES: scores_K, **by_counts, PROPORTIONAL: proportional_K})


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
