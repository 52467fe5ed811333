"""Mixtures that a recipe states by a word or by names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.search import SearchSection
from fastmix_data.shards.catalog import Catalog
from fastmix_data.weight_units import WeightUnit, token_shares
from train.mixture.bigram import BigramCounts, best_weights, count_bigrams
from train.mixture.constraints import MixtureConstraints
from train.mixture.simplex import at_least_a_thousandth
from train.proxy.training import ProxyPlan


def stated_weights(catalog: Catalog, choice: str | dict[str, float], *, unit: WeightUnit) -> Float64s:
    """Shares of tokens for `uniform`, `proportional` (to size) or names, shape (K,).

    Args:
        unit: what the stated shares count.
    """
    per_token_K = catalog.units_per_token_K(unit)
    if isinstance(choice, dict):
        return token_shares(weights_by_name(choice, sources=catalog.sources), per_token_K=per_token_K)
    assert choice in ("uniform", "proportional")
    # Proportional is the same in every unit.
    sizes_K = catalog.num_tokens_K().astype(np.float64) if choice == "proportional" else 1 / per_token_K
    weights_K: Float64s = sizes_K / sizes_K.sum()
    return weights_K


def start_and_prior(
    search: SearchSection,
    plan: ProxyPlan,
    targets: Mapping[str, float],
    *,
    constraints: MixtureConstraints,
    counts: BigramCounts | None = None,
) -> tuple[Float64s, Float64s]:
    """Where a search starts and what it is pulled to, both of shape (K,); `bigram` is counted, once.

    Args:
        targets: weights of the targets by name, summing to 1.
        constraints: that `bigram` is the best mixture within; what is stated otherwise stays as stated.
        counts: of this plan and these targets; made when they are needed and not given.

    Raises:
        InputError: a source or target is smaller than one sequence.
    """
    initial = search.initial_weights
    prior = initial if search.prior is None else search.prior
    # The counts' answer often leaves sources out, which no score could bring back; a thousandth of a share can still grow.
    known = {}
    if "bigram" in (initial, prior):
        counts = counts or count_bigrams(plan, targets)
        best_K = best_weights(counts, num_tokens=plan.training.token_budget, constraints=constraints)
        known["bigram"] = constraints.concentrated(best_K, 1)
    initial_K, prior_K = (
        known[choice]
        if isinstance(choice, str) and choice in known
        else stated_weights(plan.catalog, choice, unit=search.weight_unit)
        for choice in (initial, prior)
    )
    return initial_K, prior_K


def swarm_centre(search: SearchSection, catalog: Catalog) -> Float64s:
    """The prior of methods that know none of ours, shape (K,): uniform unless the recipe states one without a target in it."""
    stated = "uniform" if search.prior is None or search.prior == "bigram" else search.prior
    return stated_weights(catalog, stated, unit=search.weight_unit)


def weights_by_name(given: dict[str, float], *, sources: Sequence[str]) -> Float64s:
    """Given weights in the order of `sources`, normalised; sources not named get a thousandth of the uniform share."""
    weights_K = np.array([given.get(name, 0.0) for name in sources])
    return at_least_a_thousandth(weights_K / weights_K.sum())
