"""The stretches of a production run, each with its tokens and weights: from the recipe's section to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastmix_data.errors import RecipeError
from fastmix_data.messages import and_more
from fastmix_data.recipe.emit import EmitSection, PhaseSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from fastmix_data.weight_units import token_shares


@dataclass(frozen=True)
class PhasePlan:
    """What is asked of a phase: its tokens, and shares of them in the order of the catalog's sources.

    Attributes:
        key: of the recipe that says how long it is, for messages.
    """

    token_budget: int
    weights: tuple[float, ...]
    key: str = "emit.token_budget"


def plan_phases(emit: EmitSection, catalog: Catalog, *, mixture: Mixture | None, files: Mapping[str, Mixture]) -> list[PhasePlan]:
    """The phases of a whole run; one for all of it where the recipe has none.

    Args:
        mixture: of phases that state none of their own.
        files: the mixtures that phases name, by the path as it is written there.

    Raises:
        RecipeError: the sources of a mixture are not the catalog's.
    """
    if emit.phases is None:
        assert mixture is not None
        return [PhasePlan(emit.token_budget, mixture_weights(mixture, catalog))]
    lengths = zip(emit.phases, emit.tokens_of_phases(), strict=True)
    return [
        PhasePlan(tokens, _weights(phase, catalog, mixture=mixture, files=files), f"emit.phases.{number}.tokens")
        for number, (phase, tokens) in enumerate(lengths)
    ]


def phases_after(phases: Sequence[PhasePlan], served: int) -> list[PhasePlan]:
    """What is left of phases when this many of their tokens were served."""
    left, start = list[PhasePlan](), 0
    for phase in phases:
        start += phase.token_budget
        if start > served:
            left.append(PhasePlan(min(phase.token_budget, start - served), phase.weights, phase.key))
    return left


def mixture_weights(mixture: Mixture, catalog: Catalog) -> tuple[float, ...]:
    """Shares of tokens in the order of the catalog's sources.

    Raises:
        RecipeError: the mixture's sources are not the catalog's.
    """
    weights_K = mixture.weights_K(catalog.sources)
    if mixture.unit != "tokens":
        weights_K = token_shares(weights_K, per_token_K=catalog.units_per_token_K(mixture.unit))
    return tuple(weights_K.tolist())


def _weights(
    phase: PhaseSection, catalog: Catalog, *, mixture: Mixture | None, files: Mapping[str, Mixture]
) -> tuple[float, ...]:
    if phase.weights is None:
        chosen = mixture if phase.mixture is None else files[phase.mixture]
        assert chosen is not None
        return mixture_weights(chosen, catalog)
    unknown = [name for name in phase.weights if name not in catalog.sources]
    if unknown:
        problem = f"the catalog has no source {and_more(unknown)}"
        raise RecipeError("emit.phases", problem, "run `fastmix preprocess` with the sources that the recipe has now")
    total = sum(phase.weights.values())
    return tuple(phase.weights.get(name, 0.0) / total for name in catalog.sources)
