"""The nearest mixture within bounds: the exact Kullback-Leibler projection onto floors, ceilings, totals of groups and sum 1.

The problem is min KL(q || p) over lo <= q <= hi, gmin <= sum of q over a group <= gmax, sum q = 1, groups being disjoint. By its
optimality conditions q_k = clip(c p_k, lo_k, hi_k) with one number c for all, or one per group whose total is at a bound (the capped
simplex of Herbster and Warmuth, "Tracking the Best Linear Predictor", 2001, with groups). The sum is a monotone, piecewise linear
function of c; the piece on which it reaches its total is found among the breakpoints, and c on it in closed form: no tolerance.

Kullback-Leibler and not Euclidean, because the mixture lives in logits: a Euclidean projection sets weights to exactly 0, from which
no move of the logits leads back, and moves small weights by as much as large ones. This one keeps the ratios of all that is free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fastmix_data.arrays import Float64s, Int64s

_ZERO_COUNTS_AS = 1e-30  # a weight of 0 has no ratio to others; several of them share alike what only they can take


class GroupBounds(NamedTuple):
    """Indices of a group's members, and the smallest and largest total of their weights."""

    members: Int64s
    least: float
    most: float


def project(weights_K: Float64s, *, floor_K: Float64s, ceiling_K: Float64s, groups: Sequence[GroupBounds] = ()) -> Float64s:
    """The weights within the bounds that are nearest to the given ones in KL(result || given), shape (K,), sum 1.

    Args:
        weights_K: shape (K,), non-negative; their scale does not matter.
        floor_K, ceiling_K: smallest and largest weights, shape (K,), in [0, 1].
        groups: disjoint. With the floors and ceilings they must leave room for a mixture, which `constraints_of` checks.

    >>> project(np.array([.8, .1, .1]), floor_K=np.zeros(3), ceiling_K=np.array([.4, 1, 1])).tolist()
    [0.4, 0.3, 0.3]
    """
    positive_K = np.maximum(weights_K, _ZERO_COUNTS_AS)
    return _filled(
        lambda members, **bounds: scale_to_total(positive_K[members], **bounds),
        floor_K=floor_K,
        ceiling_K=ceiling_K,
        groups=groups,
    )


def cheapest(cost_K: Float64s, *, floor_K: Float64s, ceiling_K: Float64s, groups: Sequence[GroupBounds] = ()) -> Float64s:
    """The weights within the bounds whose mean cost is lowest, shape (K,), sum 1; bounds as for `project`.

    >>> cheapest(np.array([1.0, 2.0, 3.0]), floor_K=np.array([0, 0, .1]), ceiling_K=np.array([.4, 1, 1])).round(3).tolist()
    [0.4, 0.5, 0.1]
    """
    return _filled(
        lambda members, **bounds: _fill_by_cost(cost_K[members], **bounds), floor_K=floor_K, ceiling_K=ceiling_K, groups=groups
    )


class _Fill(Protocol):
    def __call__(self, members: Int64s, *, floor_N: Float64s, ceiling_N: Float64s, total: float) -> Float64s: ...


def _filled(fill: _Fill, *, floor_K: Float64s, ceiling_K: Float64s, groups: Sequence[GroupBounds]) -> Float64s:
    """What `fill` gives all sources, where it gives each of them more the larger the total is, first in the groups, then in all."""
    floor_K, ceiling_K = floor_K.copy(), ceiling_K.copy()
    for members, least, most in groups:
        # clip(total(c), least, most) = total(clip(c, c_least, c_most)): what the members have at these two totals bounds them one by one
        inside = {"floor_N": floor_K[members], "ceiling_N": ceiling_K[members]}
        at_least, at_most = (fill(members, **inside, total=total) for total in (least, most))
        floor_K[members], ceiling_K[members] = at_least, at_most
    return fill(np.arange(len(floor_K)), floor_N=floor_K, ceiling_N=ceiling_K, total=1.0)


def _fill_by_cost(cost_N: Float64s, *, floor_N: Float64s, ceiling_N: Float64s, total: float) -> Float64s:
    """Floors, and what is left of the total to the cheapest first, shape (N,)."""
    order_N = np.argsort(cost_N, kind="stable")
    room_N = (ceiling_N - floor_N)[order_N]
    left_N = total - floor_N.sum() - (np.cumsum(room_N) - room_N)
    filled_N = floor_N.copy()
    filled_N[order_N] += np.clip(left_N, 0, room_N)
    return filled_N


def scale_to_total(positive_N: Float64s, *, floor_N: Float64s, ceiling_N: Float64s, total: float) -> Float64s:
    """clip(c * positive, floor, ceiling) for the c with this total, shape (N,); all floors or all ceilings if it lies beyond them."""
    # The total grows with c in straight pieces: an entry rests on its floor up to c = lower, grows with c, and rests on its ceiling from
    # c = upper on. Between two neighbouring breakpoints the same entries are free, so that c there is one division.
    lower_N, upper_N = floor_N / positive_N, ceiling_N / positive_N
    breakpoints = np.unique(np.concatenate([lower_N, upper_N]))
    piece = bisect_right(breakpoints, total, key=lambda c: float(np.clip(c * positive_N, floor_N, ceiling_N).sum()))
    if piece == 0:
        return floor_N.copy()
    if piece == len(breakpoints):
        return ceiling_N.copy()
    left, right = breakpoints[piece - 1 : piece + 1]
    # Ties go to the bound: an entry that leaves its floor at `right`, or reached its ceiling at `left`, is not free on this piece.
    scaled_N = np.where(upper_N <= left, ceiling_N, floor_N)
    free_N = (lower_N <= left) & (upper_N >= right)
    if free_N.any():
        scale = (total - scaled_N[~free_N].sum()) / positive_N[free_N].sum()
        scaled_N[free_N] = scale * positive_N[free_N]
    # The division may overshoot a bound in its last digit, and bounds are promised exactly.
    return np.clip(scaled_N, floor_N, ceiling_N)
