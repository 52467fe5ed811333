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
from fastmix_data.errors import InfeasibleBudgetError
from fastmix_data.messages import and_more
from fastmix_data.units import format_count


def allocate_tokens(weights_K: npt.ArrayLike, *, caps_K: npt.ArrayLike, token_budget: int) -> Int64s:
    """Split a token budget over sources, never past a source's cap.

    Sources that their share would carry past their cap get the cap; the rest is divided over the others in proportion to their
    weights, which may fill more of them. Fractions of a token go to the largest remainders.

    Args:
        weights_K: asked-for shares, shape (K,), non-negative. A source of weight 0 gets nothing.
        caps_K: most tokens of each source, shape (K,); those with a weight reach the budget, which `check_budget` sees to.

    Returns:
        Tokens of each source, int64 of shape (K,); the sum is exactly `token_budget`.

    >>> allocate_tokens([.5, .5], caps_K=[8, 16], token_budget=16)
    array([8, 8])
    >>> allocate_tokens([.5, .25, .25], caps_K=[4, 16, 16], token_budget=16)
    array([4, 6, 6])
    """
    weights = [Fraction(weight) for weight in np.asarray(weights_K, np.float64).tolist()]
    caps = np.asarray(caps_K, np.int64).tolist()
    assert sum(cap for cap, weight in zip(caps, weights, strict=True) if weight) >= token_budget
    return np.array(_fill(weights, caps, token_budget), np.int64)


def _fill(weights: list[Fraction], caps: list[int], token_budget: int) -> list[int]:
    """Water-filling: tokens of an unsaturated source are `level * weight`, of a saturated one its cap."""
    tokens = [0] * len(weights)
    # As the water rises, sources fill up in the order of cap / weight, whatever the budget. So one pass finds the level: give the
    # next source its cap as long as its share of what is left is more than that; the first one that is not holds the water, and so
    # do all after it.
    by_saturation = sorted((index for index, weight in enumerate(weights) if weight), key=lambda k: caps[k] / weights[k])
    rest, weight_left = token_budget, sum(weights, Fraction(0))
    for number, source in enumerate(by_saturation):
        if caps[source] * weight_left > weights[source] * rest:
            quotas = {k: weights[k] * rest / weight_left for k in by_saturation[number:]}
            for k, quota in quotas.items():
                tokens[k] = math.floor(quota)
            # A quota below an integer cap stays within it when rounded up, so largest remainders cannot break a cap.
            missing = rest - sum(tokens[k] for k in quotas)
            for k in sorted(quotas, key=lambda k: (math.floor(quotas[k]) - quotas[k], k))[:missing]:
                tokens[k] += 1
            break
        tokens[source] = caps[source]
        rest -= caps[source]
        weight_left -= weights[source]
    return tokens


def token_caps(available_K: npt.ArrayLike, *, max_epochs: float | Sequence[float]) -> Int64s:
    """Most tokens of each source, floor(max_epochs * available), shape (K,). Epochs count as the decimals they are written with.

    >>> token_caps([10, 7], max_epochs=1.1)
    array([11,  7])
    """
    available = np.asarray(available_K, np.int64)
    epochs = np.broadcast_to(np.asarray(max_epochs, np.float64), available.shape)
    # The binary fraction behind 1.1 is a little more than 1.1, that behind 0.007 a little less: a cap would be a token off.
    pairs = zip(epochs.tolist(), available.tolist(), strict=True)
    return np.array([math.floor(Fraction(repr(epoch)) * tokens) for epoch, tokens in pairs], np.int64)


def check_budget(
    names: Sequence[str],
    *,
    available_K: npt.ArrayLike,
    caps_K: npt.ArrayLike,
    token_budget: int,
    weights_K: npt.ArrayLike | None = None,
    served_K: npt.ArrayLike = 0,
    key: str = "emit.token_budget",
) -> None:
    """Refuse a budget that is beyond the caps of all sources with a weight.

    Args:
        available_K: unique tokens of each source, shape (K,), which tell how many epochs the budget would take.
        caps_K: as for `allocate_tokens`.
        weights_K: asked-for shares; before they are known, every source counts alike.
        served_K: tokens of each source that earlier phases or manifests gave, which its cap does not hold any more.
        key: of the recipe, that sets this budget.

    Raises:
        InfeasibleBudgetError: says how much is reachable, which caps bind, and two remedies.

    >>> check_budget(["rare", "common"], available_K=[100, 200], caps_K=[400, 800], token_budget=1201)
    Traceback (most recent call last):
        ...
    fastmix_data.errors.InfeasibleBudgetError: emit.token_budget 1201 (1.20K) is beyond the epoch caps, which allow 1200 (1.20K); \
binding: rare (at most 400), common (at most 800); lower emit.token_budget to 1200, or raise emit.max_epochs to 5 for all of them
    """
    available, caps = (np.asarray(values, np.int64).tolist() for values in (available_K, caps_K))
    served = np.broadcast_to(np.asarray(served_K, np.int64), len(caps)).tolist()
    weights = [1.0] * len(caps) if weights_K is None else np.asarray(weights_K, np.float64).tolist()
    used = [k for k, weight in enumerate(weights) if weight]
    achievable = sum(caps[k] for k in used)
    if achievable >= token_budget:
        return
    worst_first = sorted(used, key=lambda k: (caps[k] / weights[k], k))
    binding = and_more([f"{names[k]} (at most {format_count(caps[k])})" for k in worst_first])
    unused = [name for name, weight in zip(names, weights, strict=True) if not weight]
    idle = f" (weight 0, not used: {and_more(unused)})" if unused else ""
    unique, before = sum(available[k] for k in used), sum(served[k] for k in used)
    left = f" after {before} ({format_count(before)}) that were served" if before else ""
    is_all = key == "emit.token_budget" and not before
    lower = f"lower {key} to {achievable}" if is_all else f"take {token_budget - achievable} tokens off {key}"
    # Whole epochs can always be realised; a fraction of one may fall short by rounding down to tokens or blocks.
    remedy = (
        f"raise emit.max_epochs to {-(-(token_budget + before) // unique)} for all of them"
        if unique
        else "give these sources text"
    )
    raise InfeasibleBudgetError(
        "",
        f"{key} {token_budget} ({format_count(token_budget)}) is beyond the epoch caps, which allow {achievable} "
        f"({format_count(achievable)}){left}; binding: {binding}{idle}",
        f"{lower}, or {remedy}",
    )
