"""Mixtures that a recipe states by a word or by names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog
from train.mixture.bigram import bigram_weights


def stated_weights(catalog: Catalog, choice: str | dict[str, float]) -> Float64s:
    """Weights for `uniform`, `proportional` (to tokens) or names, shape (K,)."""
    if isinstance(choice, dict):
        return weights_by_name(choice, sources=catalog.sources)
    assert choice in ("uniform", "proportional")
    sizes_K = catalog.num_tokens_K().astype(np.float64) if choice == "proportional" else np.ones(len(catalog.sources))
    weights_K: Float64s = sizes_K / sizes_K.sum()
    return weights_K


def start_and_prior(recipe: Recipe, catalog: Catalog) -> tuple[Float64s, Float64s]:
    """Where the recipe's search starts and what it is pulled to, both of shape (K,); `bigram` is counted, once.

    Raises:
        InputError: a source or target is smaller than one sequence.
    """
    initial, prior = recipe.search.initial_weights, recipe.search.prior
    prior = initial if prior is None else prior
    known = {"bigram": at_least_a_thousandth(bigram_weights(recipe, catalog))} if "bigram" in (initial, prior) else {}
    initial_K, prior_K = (
        known[choice] if isinstance(choice, str) and choice in known else stated_weights(catalog, choice)
        for choice in (initial, prior)
    )
    return initial_K, prior_K


def swarm_centre(recipe: Recipe, catalog: Catalog) -> Float64s:
    """The prior of methods that know none of ours, shape (K,): uniform unless the recipe states one without a target in it."""
    prior = recipe.search.prior
    return stated_weights(catalog, "uniform" if prior is None or prior == "bigram" else prior)


def weights_by_name(given: dict[str, float], *, sources: Sequence[str]) -> Float64s:
    """Given weights in the order of `sources`, normalised; sources not named get a thousandth of the uniform share."""
    weights_K = np.array([given.get(name, 0.0) for name in sources])
    return at_least_a_thousandth(weights_K / weights_K.sum())


def at_least_a_thousandth(weights_K: Float64s) -> Float64s:
    """Logits of weights near 0 would not come back: none is less than a thousandth of the uniform share."""
    raised_K = np.maximum(weights_K, 1e-3 / len(weights_K))
    normalised_K: Float64s = raised_K / raised_K.sum()
    return normalised_K
