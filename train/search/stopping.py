"""When a search may end before its budget: the averaged mixture stands still, within what its own noise moves it by."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.results.trajectory import Trajectory
from fastmix_data.units import format_count
from train.search.certainty import block_means

FEWEST_UPDATES = 16
_SMALLEST_BUDGET_SHARE = 0.25
# A half's average has twice the variance of the whole's, and a difference of halves four times: two standard errors of the average.
_SIGMAS_OF_MOVEMENT = 2 * NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class StandStill:
    """What was found when a search was ended early.

    Attributes:
        step: optimiser steps done.
        moved: distance between the averages of the two windows, as a share.
        num_updates: updates of both windows.
    """

    step: int
    moved: float
    num_updates: int


def find_stand_still(trajectory: Trajectory, *, step: int, num_steps: int, search: SearchSection) -> StandStill | None:
    """Decide after an update whether the search may end; None to go on.

    What would be averaged into the answer now, the last `average_fraction` of the steps so far, is cut into an earlier and a later window.
    Half the sum of absolute differences of their averages is how far the mixture moved. It stands still if

    - it moved by no more than `stop.tolerance`;
    - half the sum of the average's standard errors (block bootstrap) is no more than that either: windows of a mixture that jumps about
      are alike by chance at some update;
    - it moved by no more than the 90% half-widths of a difference of windows amount to, so that it may be chance; or it drifts, but would
      at this pace move the answer by no more than the tolerance until the end of the budget.

    At least a quarter of the budget and 16 averaged updates must have been seen. The decision is a function of the trajectory, so it is
    the same on every rank and after a resume.
    """
    if search.stop is None or step < _SMALLEST_BUDGET_SHARE * num_steps:
        return None
    weights_UK = trajectory.weights_since((1 - search.average_fraction) * step)
    if len(weights_UK) < FEWEST_UPDATES:
        return None
    moved, error = movement(weights_UK), standard_error(weights_UK)
    drifts = moved > _SIGMAS_OF_MOVEMENT * error
    # What may be chance is not drawn on: noise between two windows says nothing about where the mixture will be.
    to_come = moved * _answers_way(step, num_steps=num_steps, fraction=search.average_fraction) if drifts else 0.0
    if max(moved, error, to_come) > search.stop.tolerance:
        return None
    return StandStill(step, moved, len(weights_UK))


def _answers_way(step: int, *, num_steps: int, fraction: float) -> float:
    """How far the middle of the averaged part moves from here to the end of the budget, in distances between the windows' middles."""
    # The averaged part has its middle at 1 - fraction / 2 of the steps; its two windows have theirs half of the part apart.
    return (1 - fraction / 2) * (num_steps - step) / (fraction * step / 2)


def movement(weights_UK: Float64s) -> float:
    """Half the sum of absolute differences between the averages of the earlier and the later half of a series of weights."""
    half = len(weights_UK) // 2
    return 0.5 * float(np.abs(weights_UK[half:].mean(axis=0) - weights_UK[:half].mean(axis=0)).sum())


def standard_error(weights_UK: Float64s) -> float:
    """Half the sum over sources of the standard error of a series' average, from its moving-block bootstrap."""
    block = round(len(weights_UK) ** 0.5)
    return 0.5 * float(np.sqrt((block_means(weights_UK, block=block) ** 2).sum(axis=0)).sum())


def why_it_ended(still: StandStill | None, *, training: TrainingSection, search: SearchSection) -> str:
    """A sentence for the mixture and the command line."""
    if still is None:
        return f"used up its budget of {format_count(training.num_tokens)} tokens ({training.num_steps} steps)"
    assert search.stop is not None
    return (
        f"stood still: the averaged mixture moved by {still.moved:.1%} over the last {still.num_updates} updates, tolerance "
        f"{search.stop.tolerance:.1%}; at step {still.step} of {training.num_steps}, where the learning rate had not come down yet, so the "
        "proxy's losses cannot be compared with those of a full run"
    )
