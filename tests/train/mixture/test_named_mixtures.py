"""Where searches and swarms start, as the recipe states it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.weight_units import WeightUnit
from train.mixture.constraints import MixtureConstraints, stated_constraints
from train.mixture.count import best_weights, count_passages, counted_weights
from train.mixture.named_mixtures import stated_start, stated_weights, swarm_centre, weights_by_name
from train.search.plan import SearchPlan


def test_initial_weights_follow_the_catalogs_order() -> None:
    assert weights_by_name({"b": 3.0, "a": 1.0}, sources=["a", "b"]).tolist() == [0.25, 0.75]


def test_a_search_starts_from_the_count_or_where_the_recipe_says_within_the_bounds(small_plan: SearchPlan) -> None:
    plan, targets, free = small_plan.proxy, small_plan.target.weights(), small_plan.constraints
    bounds = stated_constraints(ConstraintsSection(ceiling={"plain": 0.1}), sources=("plain", "masked"))
    best_K = best_weights(count_passages(plan, targets), constraints=free)
    counted_K = counted_weights(count_passages(plan, targets), constraints=free)
    assert counted_K == pytest.approx(best_K, abs=1e-3) and counted_K.min() >= 0.5e-3 - 1e-6 and best_K[0] > 0.1
    assert counted_weights(count_passages(plan, targets), constraints=bounds) == pytest.approx([0.1, 0.9])

    def start(choice: Any, constraints: MixtureConstraints = free) -> list[float]:
        section = small_plan.search.model_copy(update={"initial_weights": choice})
        return stated_start(section, plan.catalog, constraints=constraints).tolist()

    assert start("uniform") == [0.5, 0.5] and start("proportional") == [0.625, 0.375]
    assert start({"plain": 1, "masked": 3}) == [0.25, 0.75] and start("uniform", bounds) == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize(("initial", "expected"), [("count", "uniform"), ("proportional", "proportional")])
def test_swarms_do_not_learn_the_target_from_our_count(small_plan: SearchPlan, initial: Any, expected: str) -> None:
    catalog, section = small_plan.catalog, small_plan.search.model_copy(update={"initial_weights": initial})
    assert swarm_centre(section, catalog).tolist() == stated_weights(catalog, expected, unit="tokens").tolist()


@pytest.mark.parametrize("unit", ["tokens", "loss_tokens", "examples"])
def test_stated_shares_count_the_unit_that_the_recipe_names(small_plan: SearchPlan, unit: WeightUnit) -> None:
    catalog = small_plan.catalog
    counts_K = catalog.num_units_K(unit)
    assert unit == "tokens" or not np.allclose(counts_K / counts_K.sum(), stated_weights(catalog, "proportional", unit="tokens"))

    def in_unit(choice: Any) -> list[float]:
        """What the shares of tokens come to when the unit is counted in a run of a billion tokens."""
        counted_K = 1e9 * stated_weights(catalog, choice, unit=unit) * counts_K / catalog.num_tokens_K()
        return (counted_K / counted_K.sum()).tolist()

    assert in_unit("uniform") == pytest.approx([0.5, 0.5])
    assert in_unit({"plain": 1, "masked": 3}) == pytest.approx([0.25, 0.75])
    assert in_unit("proportional") == pytest.approx((counts_K / counts_K.sum()).tolist())
    counted = catalog.counted(stated_weights(catalog, {"plain": 1, "masked": 3}, unit=unit))
    assert unit == "tokens" or counted[unit] == pytest.approx({"plain": 0.25, "masked": 0.75})
