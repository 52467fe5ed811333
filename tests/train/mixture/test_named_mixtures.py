"""Where searches and swarms start, as the recipe states it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.weight_units import WeightUnit
from train.mixture.bigram import best_weights, count_bigrams
from train.mixture.constraints import MixtureConstraints, stated_constraints
from train.mixture.named_mixtures import start_and_prior, stated_weights, swarm_centre, weights_by_name
from train.search.plan import SearchPlan


def test_initial_weights_follow_the_catalogs_order() -> None:
    assert weights_by_name({"b": 3.0, "a": 1.0}, sources=["a", "b"]).tolist() == [0.25, 0.75]


def test_a_search_is_pulled_to_where_it_starts_unless_the_recipe_says_otherwise(small_plan: SearchPlan) -> None:
    plan, targets = small_plan.proxy, small_plan.target.weights()
    free = small_plan.constraints
    best_K = best_weights(count_bigrams(plan, targets), num_tokens=plan.training.token_budget, constraints=free)

    def both(constraints: MixtureConstraints = free, **settings: Any) -> list[list[float]]:
        section = small_plan.search.model_validate({**small_plan.search.model_dump(), "prior": None, **settings})
        return [weights_K.tolist() for weights_K in start_and_prior(section, plan, targets, constraints=constraints)]

    assert both(initial_weights="bigram") == [pytest.approx(best_K, abs=1e-3)] * 2
    assert both(initial_weights="uniform") == [[0.5, 0.5]] * 2
    assert both(initial_weights="uniform", prior="bigram") == [[0.5, 0.5], pytest.approx(best_K, abs=1e-3)]
    assert both(initial_weights="proportional", prior={"plain": 1, "masked": 3}) == [[0.625, 0.375], [0.25, 0.75]]
    bounds = stated_constraints(ConstraintsSection(ceiling={"plain": 0.1}), sources=("plain", "masked"))
    assert best_K[0] > 0.1
    assert both(bounds, initial_weights="uniform", prior="bigram") == [[0.5, 0.5], pytest.approx([0.1, 0.9])]


@pytest.mark.parametrize(("prior", "expected"), [(None, "uniform"), ("bigram", "uniform"), ("proportional", "proportional")])
def test_swarms_do_not_learn_the_target_from_our_prior(small_plan: SearchPlan, prior: Any, expected: str) -> None:
    catalog, section = small_plan.catalog, small_plan.search.model_copy(update={"prior": prior})
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
