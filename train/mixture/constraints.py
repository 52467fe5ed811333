"""The bounds of a mixture: from the recipe and the production run to arrays, refused where no mixture meets them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Bools, Float64s, Int64s
from fastmix_data.errors import RecipeError
from fastmix_data.manifest.emit import check_emit
from fastmix_data.messages import and_more
from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.shards.catalog import Catalog
from fastmix_data.units import format_count
from train.mixture.projection import GroupBounds, cheapest, project
from train.mixture.simplex import to_the_power

_SLACK = 1e-9  # sums of decimals are not exact: ten floors of 0.1 are a mixture
# An average of a trajectory that came to a bound early and stayed there is not exactly at it.
_AT_BOUND = 1e-3


@dataclass(frozen=True, eq=False)
class MixtureConstraints:
    """A set of mixtures that is not empty.

    Attributes:
        sources: names, in the order of the arrays.
        floor_K: smallest weights, shape (K,).
        ceiling_K: largest weights, shape (K,); epoch caps are among them.
        groups: bounds on totals by name, disjoint.
        pinned_K: whether floor and ceiling were stated alike, shape (K,).
        capped_K: whether a source's ceiling is its epoch cap, shape (K,).
    """

    sources: tuple[str, ...]
    floor_K: Float64s
    ceiling_K: Float64s
    groups: dict[str, GroupBounds]
    pinned_K: npt.NDArray[np.bool_]
    capped_K: npt.NDArray[np.bool_]

    @property
    def is_free(self) -> bool:
        """Whether every mixture is in the set."""
        return not self.groups and not self.floor_K.any() and bool((self.ceiling_K >= 1).all())

    def project(self, weights_K: Float64s) -> Float64s:
        """The nearest mixture of the set, shape (K,); see `train.mixture.projection`."""
        # Left as it is, not projected onto the whole simplex: that would round the last digit of a search without bounds.
        if self.is_free:
            return weights_K
        return project(weights_K, floor_K=self.floor_K, ceiling_K=self.ceiling_K, groups=list(self.groups.values()))

    def allows(self, weights_CK: Float64s) -> Bools:
        """Which of many mixtures are in the set, shape (C,)."""
        inside = [(weights_CK >= self.floor_K - _SLACK).all(axis=1), (weights_CK <= self.ceiling_K + _SLACK).all(axis=1)]
        for members, least, most in self.groups.values():
            total_C = weights_CK[:, members].sum(axis=1)
            inside.append((total_C >= least - _SLACK) & (total_C <= most + _SLACK))
        allowed_C: Bools = np.logical_and.reduce(inside)
        return allowed_C

    def promise(self, weights_K: Float64s, gradient_K: Float64s) -> float:
        """What the best direction within the set promises: the most that a loss with this gradient may fall, to first order.

        Args:
            weights_K: a mixture of the set, which is a minimum where 0 is returned (Karush, Kuhn and Tucker).
        """
        best_K = cheapest(gradient_K, floor_K=self.floor_K, ceiling_K=self.ceiling_K, groups=list(self.groups.values()))
        return float(gradient_K @ (weights_K - best_K))

    def concentrated(self, weights_K: Float64s, power: float) -> Float64s:
        """A mixture of the set raised to a power without leaving it, shape (K,); 1 gives it as it is, but for `at_least_a_thousandth`.

        What rests at a ceiling or a group's max stays there: it would have more if it could, and the power of what it has says less.
        """
        ceiling_K = np.where(self.ceiling_K < 1, self.ceiling_K, np.inf)
        held_K = np.where(weights_K >= ceiling_K * (1 - _AT_BOUND), np.minimum(weights_K, ceiling_K), self.floor_K)
        groups = {}
        for name, (members, least, most) in self.groups.items():
            total = float(weights_K[members].sum())
            held = min(total, most) if most < 1 and total >= most * (1 - _AT_BOUND) else least
            groups[name] = GroupBounds(members, held, most)
        return replace(self, floor_K=held_K, groups=groups).project(to_the_power(weights_K, power))

    def binding(self, weights_K: Float64s) -> dict[str, str]:
        """The bounds that a mixture lies at, within a thousandth of the bound, by source or group.

        What is binding is "pinned", "floor", "ceiling" or "epoch cap" of a source, "group min" or "group max" of a group.
        """
        found = {}
        for k, name in enumerate(self.sources):
            floor, ceiling, weight = float(self.floor_K[k]), float(self.ceiling_K[k]), float(weights_K[k])
            if self.pinned_K[k]:
                found[name] = "pinned"
            elif ceiling < 1 and weight >= ceiling * (1 - _AT_BOUND):
                found[name] = "epoch cap" if self.capped_K[k] else "ceiling"
            elif floor > 0 and weight <= floor * (1 + _AT_BOUND):
                found[name] = "floor"
        for name, (members, least, most) in self.groups.items():
            total = float(weights_K[members].sum())
            if most < 1 and total >= most * (1 - _AT_BOUND):
                found[name] = "group max"
            elif least > 0 and total <= least * (1 + _AT_BOUND):
                found[name] = "group min"
        return found


def constraints_of(section: ConstraintsSection, catalog: Catalog, emit: EmitSection | None) -> MixtureConstraints:
    """What a search has to keep to: the recipe's bounds, and with epoch_caps what emit can make of the catalog.

    A source's epoch cap is the share of emit.token_budget that its blocks can fill within emit.max_epochs: the very cap that emit
    holds it to, so that emit need not move tokens of a searched mixture to other sources. Without an emit section nothing is known of
    production, and there are no caps.

    Raises:
        RecipeError: no mixture meets them; names what contradicts what, with the remedy.
        InfeasibleBudgetError: emit.token_budget is beyond the epoch caps whatever the mixture.
    """
    stated = stated_constraints(section, sources=catalog.sources)
    if emit is None or not section.epoch_caps:
        return stated
    tokens_K = check_emit(catalog, emit)
    capped = _with_caps(stated, tokens_K / emit.token_budget)
    problem = _contradiction(capped)
    if problem is not None:
        raise RecipeError(problem.where, problem.what, f"{_production_remedy(stated, tokens_K, emit)}, or {problem.remedy}")
    return capped


def stated_constraints(section: ConstraintsSection, *, sources: Sequence[str]) -> MixtureConstraints:
    """The bounds that the recipe states, without epoch caps; a pinned share comes before bounds given for all sources.

    Raises:
        RecipeError: no mixture meets them.
    """
    floors, ceilings = _by_source(section.floor, sources, other=0.0), _by_source(section.ceiling, sources, other=1.0)
    floors, ceilings = floors | section.pinned, ceilings | section.pinned
    floor_K, ceiling_K = (np.array([bounds[name] for name in sources], np.float64) for bounds in (floors, ceilings))
    index = {name: k for k, name in enumerate(sources)}
    stated = MixtureConstraints(
        sources=tuple(sources),
        floor_K=floor_K,
        ceiling_K=ceiling_K,
        groups={
            name: GroupBounds(np.array([index[member] for member in group.sources], np.int64), group.min, group.max)
            for name, group in section.groups.items()
        },
        pinned_K=floor_K == ceiling_K,
        capped_K=np.zeros(len(sources), np.bool_),
    )
    problem = _contradiction(stated)
    if problem is not None:
        raise problem
    return stated


def _by_source(bound: float | Mapping[str, float], sources: Sequence[str], *, other: float) -> dict[str, float]:
    return {name: bound.get(name, other) if isinstance(bound, Mapping) else bound for name in sources}


def _with_caps(stated: MixtureConstraints, cap_K: Float64s) -> MixtureConstraints:
    # On a tie the ceiling is the recipe's own: it is what the user would have to change.
    capped_K = cap_K < stated.ceiling_K
    return replace(stated, ceiling_K=np.where(capped_K, cap_K, stated.ceiling_K), capped_K=capped_K)


def _contradiction(bounds: MixtureConstraints) -> RecipeError | None:
    """The first reason why no mixture meets the bounds: one source's own, a group's with its members', then those of all."""
    key = "search.constraints"
    for k in np.flatnonzero(bounds.floor_K > bounds.ceiling_K).tolist():
        return RecipeError(key, f"{_floor_text(bounds, k)} is above {_ceiling_text(bounds, k)}", "change one of the two")
    least_K, most_K = bounds.floor_K.copy(), bounds.ceiling_K.copy()
    for name, (members, least, most) in bounds.groups.items():
        where, needed, allowed = f"{key}.groups.{name}", least_K[members].sum(), most_K[members].sum()
        if needed > most + _SLACK:
            what = f"its max {most:.6g} is less than the {needed:.6g} its members need ({_floors(bounds, members)})"
            return RecipeError(where, what, "raise the one or lower the other")
        if allowed < least - _SLACK:
            what = f"its min {least:.6g} is more than the {allowed:.6g} its members may have ({_ceilings(bounds, members)})"
            return RecipeError(where, what, "lower the one or raise the other")
        # From here on the group counts as one source: its total stands at the place of its first member.
        least_K[members], most_K[members] = 0.0, 0.0
        least_K[members[0]], most_K[members[0]] = max(needed, least), min(allowed, most)
    everything = np.arange(len(bounds.sources))
    if least_K.sum() > 1 + _SLACK:
        what = f"they ask for {least_K.sum():.6g} in all, more than 1 ({_floors(bounds, everything)})"
        return RecipeError(key, what, "lower some of these")
    if most_K.sum() < 1 - _SLACK:
        what = f"they allow {most_K.sum():.6g} in all, less than 1 ({_ceilings(bounds, everything)})"
        return RecipeError(key, what, "raise some of these")
    return None


def _floor_text(bounds: MixtureConstraints, k: int) -> str:
    return f"the {'pinned share' if bounds.pinned_K[k] else 'floor'} {bounds.floor_K[k]:.6g} of {bounds.sources[k]}"


def _ceiling_text(bounds: MixtureConstraints, k: int) -> str:
    kind = "epoch cap" if bounds.capped_K[k] else "pinned share" if bounds.pinned_K[k] else "ceiling"
    return f"the {kind} {bounds.ceiling_K[k]:.6g} of {bounds.sources[k]}"


def _floors(bounds: MixtureConstraints, members: Int64s) -> str:
    """What asks for most, groups first where all sources are listed."""
    by_size = sorted(members.tolist(), key=lambda k: (-bounds.floor_K[k], k))
    groups = [f"the min {group.least:.6g} of group {name}" for name, group in bounds.groups.items() if group.least > 0]
    texts = [_floor_text(bounds, k) for k in by_size if bounds.floor_K[k] > 0]
    return and_more([*(groups if len(members) == len(bounds.sources) else []), *texts])


def _ceilings(bounds: MixtureConstraints, members: Int64s) -> str:
    """What allows least, groups first where all sources are listed."""
    by_size = sorted(members.tolist(), key=lambda k: (bounds.ceiling_K[k], k))
    groups = [f"the max {group.most:.6g} of group {name}" for name, group in bounds.groups.items() if group.most < 1]
    texts = [_ceiling_text(bounds, k) for k in by_size if bounds.ceiling_K[k] < 1]
    return and_more([*(groups if len(members) == len(bounds.sources) else []), *texts])


def _production_remedy(stated: MixtureConstraints, tokens_K: Int64s, emit: EmitSection) -> str:
    """The largest budget, and the number of epochs, with which the stated bounds can be met."""
    # As the range starts at 1, the index of the first budget out of reach is the last one within it.
    achievable = bisect_left(range(1, emit.token_budget), True, key=lambda budget: _out_of_reach(stated, tokens_K, budget))
    if not achievable:
        return "raise emit.max_epochs"
    # Caps go by epochs over budget, so one factor serves both; whole epochs lose nothing to blocks, hence rounded up.
    factor = emit.token_budget / achievable
    if isinstance(emit.max_epochs, dict):
        epochs = f"raise emit.max_epochs of the capped sources {math.ceil(10 * factor) / 10:g}-fold"
    else:
        epochs = f"raise emit.max_epochs to {math.ceil(emit.max_epochs * factor)}"
    return f"lower emit.token_budget to {achievable} ({format_count(achievable)}), or {epochs}"


def _out_of_reach(stated: MixtureConstraints, tokens_K: Int64s, token_budget: int) -> bool:
    return _contradiction(_with_caps(stated, tokens_K / token_budget)) is not None
