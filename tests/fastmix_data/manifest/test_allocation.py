from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.errors import InfeasibleBudgetError
from fastmix_data.manifest.allocation import allocate_tokens, check_budget, token_caps


class Problem(NamedTuple):
    weights_K: np.ndarray
    available: list[int]
    caps_K: np.ndarray
    budget: int

    @property
    def reachable(self) -> int:
        return int(self.caps_K[self.weights_K > 0].sum())

    @property
    def names(self) -> list[str]:
        return [f"s{k}" for k in range(len(self.available))]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    num_sources = draw(st.integers(1, 12))
    raw = draw(st.lists(st.integers(0, 1000), min_size=num_sources, max_size=num_sources).filter(any))
    weights_K = np.array(raw) / sum(raw)
    available = draw(st.lists(st.integers(0, 10**14), min_size=num_sources, max_size=num_sources))
    epochs = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.5, 4.0, 16.0]), min_size=num_sources, max_size=num_sources))
    caps_K = token_caps(available, max_epochs=epochs)
    return Problem(weights_K, available, caps_K, draw(st.integers(0, int(caps_K[weights_K > 0].sum()))))


@given(problems(), st.integers(1, 10**6))
def test_the_allocation_is_that_of_water_filling(problem: Problem, extra: int) -> None:
    """Exact sums, caps that hold, and the optimality conditions, each to within the rounding of one token."""
    weights_K, _, caps_K, budget = problem
    tokens_K = allocate_tokens(weights_K, caps_K=caps_K, token_budget=budget)
    assert sum(tokens_K.tolist()) == budget
    assert (tokens_K <= caps_K).all() and (tokens_K >= 0).all() and (tokens_K[weights_K == 0] == 0).all()
    used = [k for k in range(len(weights_K)) if weights_K[k] > 0]
    level_of = {k: (Fraction(int(tokens_K[k])) / Fraction(weights_K[k]), 1 / Fraction(weights_K[k])) for k in used}
    for level, token in (level_of[k] for k in used if tokens_K[k] < caps_K[k]):  # sources at their cap are below one level
        assert all(other - other_token <= level + token for other, other_token in level_of.values())
    smaller_K = allocate_tokens(weights_K, caps_K=caps_K, token_budget=max(budget - extra, 0))
    assert (smaller_K <= tokens_K + 1).all()  # a larger budget gives no source less; largest remainders may move one token


@given(problems())
def test_the_order_of_shares_is_kept_under_equal_caps(problem: Problem) -> None:
    budget = problem.budget % 10**9
    tokens_K = allocate_tokens(problem.weights_K, caps_K=[budget] * len(problem.weights_K), token_budget=budget)
    by_weight = np.argsort(problem.weights_K, kind="stable")
    steps = np.diff(tokens_K[by_weight])
    assert (steps[np.diff(problem.weights_K[by_weight]) > 0] >= 0).all() and (steps >= -1).all()


@pytest.mark.parametrize(
    ("weights", "caps", "budget", "expected"),
    [
        ([0.5, 0.5], [8, 16], 16, [8, 8]),
        ([0.5, 0.25, 0.25], [4, 16, 16], 16, [4, 6, 6]),  # the excess of the first goes to the others equally
        ([0.6, 0.3, 0.1], [20, 20, 200], 60, [20, 20, 20]),  # one cap fills another
        ([1 / 3, 1 / 3, 1 / 3], [100, 100, 100], 100, [34, 33, 33]),  # a tie goes to the first
        ([0.0, 1.0], [150, 150], 150, [0, 150]),
        ([0.9, 0.1], [5, 1000], 100, [5, 95]),
        ([0.7, 0.2, 0.1], [4 * 10**15] * 3, 10**15 + 10, [7 * 10**14 + 7, 2 * 10**14 + 2, 10**14 + 1]),
    ],
)
def test_worked_examples(weights: list[float], caps: list[int], budget: int, expected: list[int]) -> None:
    assert allocate_tokens(weights, caps_K=caps, token_budget=budget).tolist() == expected


def test_an_epoch_cap_counts_as_the_decimal_it_is_written_as() -> None:
    assert token_caps([10], max_epochs=1.1).tolist() == [11]
    assert token_caps([1000], max_epochs=0.007).tolist() == [7]


def test_an_infeasible_budget_names_what_is_reachable_the_binding_sources_and_two_remedies() -> None:
    with pytest.raises(InfeasibleBudgetError) as error:
        check_budget(
            ["rare", "common", "idle"],
            available_K=[100, 400, 10**6],
            caps_K=[400, 1600, 4 * 10**6],
            token_budget=3000,
            weights_K=[0.9, 0.1, 0.0],
        )
    message = str(error.value)
    assert "\n" not in message
    assert "3000" in message and "allow 2000" in message
    assert "binding: rare (at most 400), common" in message and "not used: idle" in message
    assert error.value.remedy == "lower emit.token_budget to 2000, or raise emit.max_epochs to 6 for all of them"


@given(problems())
def test_the_remedies_of_an_infeasible_budget_work(problem: Problem) -> None:
    beyond = problem.reachable + 1
    check_budget(
        problem.names,
        available_K=problem.available,
        caps_K=problem.caps_K,
        token_budget=problem.reachable,
        weights_K=problem.weights_K,
    )
    with pytest.raises(InfeasibleBudgetError) as error:
        check_budget(
            problem.names,
            available_K=problem.available,
            caps_K=problem.caps_K,
            token_budget=beyond,
            weights_K=problem.weights_K,
        )
    if problem.reachable:
        raised = float(error.value.remedy.split("raise emit.max_epochs to ")[1].split(" ")[0])
        assert token_caps(problem.available, max_epochs=raised)[problem.weights_K > 0].sum() >= beyond


def test_a_budget_beyond_all_caps_is_refused_before_any_mixture_is_known() -> None:
    check_budget(["a", "b"], available_K=[100, 200], caps_K=[400, 800], token_budget=1200)
    with pytest.raises(InfeasibleBudgetError, match=r"allow 1200 .* to 1200, or raise emit.max_epochs to 5"):
        check_budget(["a", "b"], available_K=[100, 200], caps_K=[400, 800], token_budget=1201)
