"""Mixtures that a recipe states by a word or by names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.search import SearchSection
from fastmix_data.shards.catalog import Catalog
from fastmix_data.weight_units import WeightUnit, token_shares
from train.mixture.constraints import MixtureConstraints
from train.mixture.simplex import at_least_a_thousandth


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
    sizes_K = catalog.available_K().astype(np.float64) if choice == "proportional" else 1 / per_token_K
    weights_K: Float64s = sizes_K / sizes_K.sum()
    return weights_K


def stated_start(search: SearchSection, catalog: Catalog, *, constraints: MixtureConstraints) -> Float64s:
    """The start that a recipe states by a word or by names, brought within the constraints, shape (K,)."""
    return constraints.project(stated_weights(catalog, search.initial_weights, unit=search.weight_unit))


def swarm_centre(search: SearchSection, catalog: Catalog) -> Float64s:
    """What methods that know none of ours start from, shape (K,): uniform unless the recipe states a start without a target in it."""
    stated = "uniform" if search.initial_weights == "count" else search.initial_weights
    return stated_weights(catalog, stated, unit=search.weight_unit)


def weights_by_name(given: dict[str, float], *, sources: Sequence[str]) -> Float64s:
    """Given weights in the order of `sources`, normalised; sources not named get a thousandth of the uniform share."""
    weights_K = np.array([given.get(name, 0.0) for name in sources])
    return at_least_a_thousandth(weights_K / weights_K.sum())
