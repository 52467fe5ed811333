"""The projection against the optimality conditions of its problem, and against a slow method that knows nothing of breakpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.mixture.projection import GroupBounds, project


@dataclass(frozen=True)
class Problem:
    weights_K: np.ndarray
    floor_K: np.ndarray
    ceiling_K: np.ndarray
    groups: list[GroupBounds]

    def solve(self) -> np.ndarray:
        return project(self.weights_K, floor_K=self.floor_K, ceiling_K=self.ceiling_K, groups=self.groups)


def problem(num_sources: int, seed: int) -> Problem:
    """Bounds around a hidden mixture, so that there is a solution; some sources are pinned, bounds on others are loose or missing."""
    rng = np.random.default_rng(seed)
    hidden = rng.dirichlet(np.full(num_sources, 0.7)) * 0.99 + 0.01 / num_sources
    floor = np.where(rng.random(num_sources) < 0.6, hidden * rng.random(num_sources), 0)
    ceiling = np.where(rng.random(num_sources) < 0.6, hidden + (1 - hidden) * rng.random(num_sources) ** 3, 1)
    pinned = rng.random(num_sources) < 0.1
    floor[pinned] = ceiling[pinned] = hidden[pinned]
    groups = []
    for members in np.split(rng.permutation(num_sources), np.sort(rng.integers(0, num_sources + 1, 3)))[:3]:
        if len(members):
            total = hidden[members].sum()
            least, most = total * rng.choice([0, 0.9, 1]), min(1, total * rng.choice([1, 1.1, 10]))
            groups.append(GroupBounds(members, float(least), float(most)))
    weights = rng.dirichlet(np.full(num_sources, rng.choice([0.05, 1]))) + 1e-9
    return Problem(weights / weights.sum(), floor, ceiling, groups)


def optimality_gap(given: Problem, solution: np.ndarray) -> float:
    """How far the multipliers are from existing: 0 for the optimum (Karush, Kuhn and Tucker), in nats.

    A source above its floor wants log c >= log(q/p), one below its ceiling log c <= log(q/p); c is common to a group, and one for
    all groups but those at their least (whose own c may be larger) and at their most (smaller).
    """
    ratio = np.log(solution / given.weights_K)
    in_groups = np.concatenate([group.members for group in given.groups]) if given.groups else np.zeros(0, int)
    alone = [GroupBounds(np.array([k]), 0.0, 1.0) for k in range(len(solution)) if k not in in_groups]
    gap, at_least, at_most = 0.0, -math.inf, math.inf
    for members, least, most in [*given.groups, *alone]:
        low = ratio[members][solution[members] > given.floor_K[members]].max(initial=-math.inf)
        high = ratio[members][solution[members] < given.ceiling_K[members]].min(initial=math.inf)
        gap = max(gap, low - high)
        total = solution[members].sum()
        at_least = max(at_least, low) if total > least + 1e-12 else at_least
        at_most = min(at_most, high) if total < most - 1e-12 else at_most
    return max(gap, at_least - at_most)


def slow_projection(given: Problem, num_rounds: int) -> np.ndarray:
    """Dykstra's method with Bregman projections (Bauschke and Lewis, 2000): bounds, groups and sum in turn, with memory."""
    everything = np.arange(len(given.weights_K))
    sets = [GroupBounds(everything, 1.0, 1.0), *given.groups]
    x = given.weights_K.copy()
    memory = [np.ones_like(x) for _ in range(len(sets) + 1)]
    for _ in range(num_rounds):
        for number, (members, least, most) in enumerate(sets):
            y = x * memory[number]
            x = y.copy()
            x[members] *= np.clip(y[members].sum(), least, most) / y[members].sum()
            memory[number] = y / x
        y = x * memory[-1]
        x = np.clip(y, np.maximum(given.floor_K, 1e-12), given.ceiling_K)
        memory[-1] = y / x
    return x


@given(st.integers(1, 12), st.integers(0, 1_000_000))
@settings(deadline=None, max_examples=300)
def test_solution_is_feasible_and_meets_the_optimality_conditions(num_sources: int, seed: int) -> None:
    given = problem(num_sources, seed)
    solution = given.solve()
    assert abs(solution.sum() - 1) < 1e-12
    assert (solution >= given.floor_K).all() and (solution <= given.ceiling_K).all()
    assert all(least - 1e-12 <= solution[members].sum() <= most + 1e-12 for members, least, most in given.groups)
    assert optimality_gap(given, solution) < 1e-8


@given(st.integers(2, 12), st.integers(0, 1_000_000))
@settings(deadline=None)
def test_projecting_twice_changes_nothing(num_sources: int, seed: int) -> None:
    given = problem(num_sources, seed)
    once = given.solve()
    again = project(once, floor_K=given.floor_K, ceiling_K=given.ceiling_K, groups=given.groups)
    assert np.allclose(again, once, rtol=1e-12, atol=1e-14)


@given(st.integers(2, 12), st.integers(0, 1_000_000), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_scale_of_the_weights_does_not_matter(num_sources: int, seed: int, scale: float) -> None:
    given = problem(num_sources, seed)
    scaled = project(scale * given.weights_K, floor_K=given.floor_K, ceiling_K=given.ceiling_K, groups=given.groups)
    assert np.allclose(scaled, given.solve(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("seed", range(12))
def test_solution_equals_that_of_alternating_projections(seed: int) -> None:
    given = problem(5, seed)
    assert np.allclose(slow_projection(given, 4000), given.solve(), atol=1e-5)


def test_a_worked_example_with_a_group() -> None:
    """The group of 0.6 comes down to 0.3 at equal ratios; the other two share 0.7 at theirs, 3 to 1."""
    solution = project(
        np.array([0.4, 0.2, 0.3, 0.1]),
        floor_K=np.zeros(4),
        ceiling_K=np.ones(4),
        groups=[GroupBounds(np.array([0, 1]), 0.0, 0.3)],
    )
    assert np.allclose(solution, [0.2, 0.1, 0.525, 0.175], atol=1e-15)


def test_a_mixture_within_its_bounds_stays() -> None:
    weights = np.array([0.5, 0.3, 0.2])
    assert np.allclose(project(weights, floor_K=np.full(3, 0.1), ceiling_K=np.full(3, 0.6)), weights, atol=1e-16)


def test_what_is_free_keeps_its_ratios_and_never_becomes_zero() -> None:
    """A Euclidean projection would take the same amount off both and set the small one to 0, from which a logit cannot return."""
    solution = project(np.array([0.3, 0.699, 0.001]), floor_K=np.array([0.9, 0, 0]), ceiling_K=np.ones(3))
    assert solution[0] == 0.9 and solution[1] / solution[2] == pytest.approx(699)


def test_weights_of_zero_are_raised_to_floors_and_share_what_only_they_can_take() -> None:
    no_bounds = {"floor_K": np.zeros(4), "ceiling_K": np.array([0.4, 1, 1, 1])}
    assert np.allclose(project(np.array([1.0, 0, 0, 0]), **no_bounds), [0.4, 0.2, 0.2, 0.2], atol=1e-15)
    with_floor = project(np.array([0.5, 0.5, 0]), floor_K=np.array([0, 0, 0.1]), ceiling_K=np.ones(3))
    assert np.allclose(with_floor, [0.45, 0.45, 0.1], atol=1e-15)


def test_pins_that_leave_nothing_give_zero_to_the_rest() -> None:
    pins = np.array([0.3, 0.7, 0.0])
    assert project(np.full(3, 1 / 3), floor_K=pins, ceiling_K=np.array([0.3, 0.7, 1])).tolist() == [0.3, 0.7, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_five_hundred_sources_are_solved_to_the_same_precision(seed: int) -> None:
    given = problem(512, seed)
    solution = given.solve()
    assert abs(solution.sum() - 1) < 1e-12 and optimality_gap(given, solution) < 1e-8
