"""How many tokens each source gives to a budget: the mixture's shares, held under epoch caps by water-filling.

All arithmetic is on integers and fractions, so that sums are exact at any size and equal inputs give equal answers anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Int64s
from fastmix_data.errors import InfeasibleBudgetError, RecipeError
from fastmix_data.units import format_count

_SUM_TOLERANCE = 1e-6
_NAMES_SHOWN = 4


def allocate_tokens(
    weights_K: npt.ArrayLike,
    *,
    available_K: npt.ArrayLike,
    token_budget: int,
    max_epochs: float | Sequence[float],
    names: Sequence[str] | None = None,
    caps_K: npt.ArrayLike | None = None,
) -> Int64s:
    """Split a token budget over sources, never past a source's epoch cap.

    Sources that their share would carry past their cap get the cap; the rest is divided over the others in proportion to their
    weights, which may fill more of them. Fractions of a token go to the largest remainders.

    Args:
        weights_K: asked-for shares, shape (K,), non-negative, sum 1. A source of weight 0 gets nothing.
        available_K: unique tokens of each source, shape (K,).
        max_epochs: most passes over a source, one number or shape (K,).
        names: of the sources, for the error.
        caps_K: tighter caps in tokens, shape (K,), for data that only comes in blocks; instead of `max_epochs * available_K`.

    Returns:
        Tokens of each source, int64 of shape (K,); the sum is exactly `token_budget`.

    Raises:
        RecipeError: the weights are not shares.
        InfeasibleBudgetError: the caps make the budget unreachable; says how much is reachable and which caps bind.

    >>> allocate_tokens([.5, .5], available_K=[8, 16], token_budget=16, max_epochs=1.0)
    array([8, 8])
    >>> allocate_tokens([.5, .25, .25], available_K=[4, 16, 16], token_budget=16, max_epochs=1.0)
    array([4, 6, 6])
    """
    weights = [float(weight) for weight in np.asarray(weights_K, np.float64)]
    names = list(names) if names is not None else [f"source {index}" for index in range(len(weights))]
    _check_weights(weights, names)
    caps = token_caps(available_K, max_epochs=max_epochs) if caps_K is None else np.asarray(caps_K, np.int64)
    limits = [int(cap) if weight > 0 else 0 for cap, weight in zip(caps, weights, strict=True)]
    if sum(limits) < token_budget:
        unused = [name for name, weight in zip(names, weights, strict=True) if not weight]
        _refuse(limits, available_K, token_budget, names=names, demand=weights, unused=unused)
    return np.array(_fill([Fraction(weight) for weight in weights], limits, token_budget), np.int64)


def token_caps(available_K: npt.ArrayLike, *, max_epochs: float | Sequence[float]) -> Int64s:
    """Most tokens of each source, floor(max_epochs * available), shape (K,). Epochs count as the decimals they are written with.

    >>> token_caps([10, 7], max_epochs=1.1)
    array([11,  7])
    """
    available = np.asarray(available_K, np.int64)
    epochs = np.broadcast_to(np.asarray(max_epochs, np.float64), available.shape)
    pairs = zip(epochs.tolist(), available.tolist(), strict=True)
    return np.array([math.floor(Fraction(repr(epoch)) * tokens) for epoch, tokens in pairs], np.int64)


def check_budget(
    available_K: npt.ArrayLike,
    *,
    token_budget: int,
    max_epochs: float | Sequence[float],
    names: Sequence[str],
    caps_K: npt.ArrayLike | None = None,
) -> None:
    """Refuse a budget that no mixture could reach: one beyond the sum of all caps. Costs nothing; meant for before the search.

    Args:
        available_K: unique tokens of each source, shape (K,).
        caps_K: as for `allocate_tokens`.

    Raises:
        InfeasibleBudgetError: says how much is reachable.
    """
    caps = token_caps(available_K, max_epochs=max_epochs) if caps_K is None else np.asarray(caps_K, np.int64)
    limits = [int(cap) for cap in caps]
    if sum(limits) < token_budget:
        demand = [1.0] * len(limits)
        _refuse(limits, available_K, token_budget, names=names, demand=demand, unused=[])


def _check_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight) or weight < 0:
            raise RecipeError(f"weight of {name}: {weight} is not a share; use a number from 0 to 1")
    total = math.fsum(weights)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise RecipeError(f"the weights sum to {total:.6g}, not 1; divide each of them by the sum")


def _fill(weights: list[Fraction], limits: list[int], token_budget: int) -> list[int]:
    """Water-filling: tokens of an unsaturated source are `level * weight`, of a saturated one its limit."""
    tokens = [0] * len(weights)
    by_saturation = sorted((index for index, weight in enumerate(weights) if weight), key=lambda k: limits[k] / weights[k])
    rest, weight_left = token_budget, sum(weights, Fraction(0))
    for number, source in enumerate(by_saturation):
        if limits[source] * weight_left > weights[source] * rest:
            quotas = {k: weights[k] * rest / weight_left for k in by_saturation[number:]}
            for k, quota in quotas.items():
                tokens[k] = math.floor(quota)
            # A quota below an integer limit stays within it when rounded up.
            missing = rest - sum(tokens[k] for k in quotas)
            for k in sorted(quotas, key=lambda k: (math.floor(quotas[k]) - quotas[k], k))[:missing]:
                tokens[k] += 1
            break
        tokens[source] = limits[source]
        rest -= limits[source]
        weight_left -= weights[source]
    return tokens


def _refuse(
    limits: list[int],
    available_K: npt.ArrayLike,
    token_budget: int,
    *,
    names: Sequence[str],
    demand: Sequence[float],
    unused: Sequence[str],
) -> None:
    achievable = sum(limits)
    used = [index for index, weight in enumerate(demand) if weight]
    available = [int(tokens) for tokens in np.asarray(available_K, np.int64)]
    worst_first = sorted(used, key=lambda k: (limits[k] / (demand[k] * token_budget), k))
    shown = ", ".join(f"{names[k]} (at most {format_count(limits[k])})" for k in worst_first[:_NAMES_SHOWN])
    more = f" and {len(used) - _NAMES_SHOWN} more" if len(used) > _NAMES_SHOWN else ""
    unique = sum(available[k] for k in used)
    # Whole epochs can always be realised; a fraction of one may fall short by rounding down to tokens or blocks.
    remedy = f"raise emit.max_epochs to {-(-token_budget // unique)} for all of them" if unique else "give these sources text"
    idle = f" (weight 0, not used: {', '.join(unused[:_NAMES_SHOWN])})" if unused else ""
    raise InfeasibleBudgetError(
        f"emit.token_budget {token_budget} ({format_count(token_budget)}) is beyond the epoch caps, which allow {achievable} "
        f"({format_count(achievable)}); binding: {shown}{more}{idle}; lower emit.token_budget to {achievable}, or {remedy}"
    )
