"""The bounds that a fitted mixture keeps to: caps from the command line, or those of a recipe of the same sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmix_data.errors import RecipeError
from fastmix_data.messages import and_more, nearest
from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import load_catalog
from train.mixture.constraints import MixtureConstraints, constraints_of, stated_constraints


def fit_bounds(sources: Sequence[str], *, caps: Sequence[str], recipe: Recipe | None) -> MixtureConstraints:
    """Bounds in the order of the swarm's sources.

    A recipe's epoch caps are among them, if it has an emit section; its sources must be preprocessed for that.

    Raises:
        RecipeError: a cap is none, the recipe's sources are others, or no mixture meets the bounds.
    """
    if recipe is None:
        return stated_constraints(ConstraintsSection(ceiling=_parsed(caps, sources)), sources=sources)
    if caps:
        raise RecipeError("--cap", "stands beside --recipe", "put it into the recipe as search.constraints.ceiling")
    if set(recipe.sources) != set(sources):
        differing = sorted(set(recipe.sources) ^ set(sources))
        what = f"its sources are not those of the table: {and_more(differing)} are in one of them only"
        raise RecipeError("--recipe", what, "name them alike, or give bounds with --cap")
    section = recipe.search.constraints
    if recipe.emit is None or not section.epoch_caps:
        return stated_constraints(section, sources=sources)
    if not recipe.paths.catalog.is_file():
        what = "its epoch caps depend on the sizes of its sources, which are not preprocessed yet"
        raise RecipeError("--recipe", what, "run `fastmix preprocess` first, or set search.constraints.epoch_caps to false")
    return _in_order(constraints_of(section, load_catalog(recipe.paths.catalog), recipe.emit), sources)


def _in_order(bounds: MixtureConstraints, sources: Sequence[str]) -> MixtureConstraints:
    """The same bounds with arrays in another order of the sources."""
    order_K = np.array([bounds.sources.index(name) for name in sources])
    place_K = np.argsort(order_K)
    return MixtureConstraints(
        sources=tuple(sources),
        floor_K=bounds.floor_K[order_K],
        ceiling_K=bounds.ceiling_K[order_K],
        groups={name: group._replace(members=place_K[group.members]) for name, group in bounds.groups.items()},
        pinned_K=bounds.pinned_K[order_K],
        capped_K=bounds.capped_K[order_K],
    )


def _parsed(caps: Sequence[str], sources: Sequence[str]) -> dict[str, float]:
    parsed: dict[str, float] = {}
    for text in caps:
        name, _, share = text.rpartition("=")
        where = f"--cap {text}"
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not name or not 0 <= value <= 1:
            raise RecipeError(where, "is no share of a source", "write it as --cap NAME=0.3, from 0 to 1")
        if name not in sources:
            likely = nearest(name, sources)
            remedy = f"did you mean {likely}?" if likely else f"the sources are {and_more(list(sources))}"
            raise RecipeError(where, f"there is no source {name}", remedy)
        if name in parsed:
            raise RecipeError(where, f"{name} has a cap already", "remove one")
        parsed[name] = value
    return parsed
