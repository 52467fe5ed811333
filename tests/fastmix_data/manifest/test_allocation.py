from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.errors import InfeasibleBudgetError, RecipeError
from fastmix_data.manifest.allocation import allocate_tokens, check_budget, token_caps


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[int], list[float], int]:
    num_sources = draw(st.integers(1, 12))
    raw = draw(st.lists(st.integers(0, 1000), min_size=num_sources, max_size=num_sources).filter(any))
    weights_K = np.array(raw) / sum(raw)
    available = draw(st.lists(st.integers(0, 10**14), min_size=num_sources, max_size=num_sources))
    epochs = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.5, 4.0, 16.0]), min_size=num_sources, max_size=num_sources))
    caps_K = token_caps(available, max_epochs=epochs)
    reachable = int(caps_K[weights_K > 0].sum())
    return weights_K, available, epochs, draw(st.integers(0, reachable))


@given(problems())
def test_sums_are_exact_and_caps_hold(problem: tuple[np.ndarray, list[int], list[float], int]) -> None:
    weights_K, available, epochs, budget = problem
    tokens_K = allocate_tokens(weights_K, available_K=available, token_budget=budget, max_epochs=epochs)
    assert sum(tokens_K.tolist()) == budget
    assert (tokens_K <= token_caps(available, max_epochs=epochs)).all() and (tokens_K >= 0).all()
    assert (tokens_K[weights_K == 0] == 0).all()


@given(problems())
def test_unsaturated_sources_share_one_water_level_that_saturated_ones_are_below(
    problem: tuple[np.ndarray, list[int], list[float], int],
) -> None:
    """The optimality conditions of water-filling, each to within the rounding of one token."""
    weights_K, available, epochs, budget = problem
    tokens_K = allocate_tokens(weights_K, available_K=available, token_budget=budget, max_epochs=epochs)
    caps_K = token_caps(available, max_epochs=epochs)
    used = [k for k in range(len(weights_K)) if weights_K[k] > 0]
    free = [k for k in used if tokens_K[k] < caps_K[k]]
    level_of = {k: (Fraction(int(tokens_K[k])) / Fraction(weights_K[k]), 1 / Fraction(weights_K[k])) for k in used}
    for k in free:
        level, token = level_of[k]
        assert all(other - other_token <= level + token for other, other_token in level_of.values())


@given(problems(), st.integers(1, 10**6))
def test_a_larger_budget_gives_no_source_less(problem: tuple[np.ndarray, list[int], list[float], int], extra: int) -> None:
    weights_K, available, epochs, budget = problem
    smaller_K = allocate_tokens(weights_K, available_K=available, token_budget=max(budget - extra, 0), max_epochs=epochs)
    larger_K = allocate_tokens(weights_K, available_K=available, token_budget=budget, max_epochs=epochs)
    assert (smaller_K <= larger_K + 1).all()  # largest remainders may move one token


@given(problems())
def test_the_order_of_shares_is_kept_under_equal_caps(problem: tuple[np.ndarray, list[int], list[float], int]) -> None:
    weights_K, _, _, budget = problem
    budget = budget % 10**9
    tokens_K = allocate_tokens(weights_K, available_K=[budget] * len(weights_K), token_budget=budget, max_epochs=1)
    by_weight = np.argsort(weights_K, kind="stable")
    steps = np.diff(tokens_K[by_weight])
    assert (steps[np.diff(weights_K[by_weight]) > 0] >= 0).all() and (steps >= -1).all()


@pytest.mark.parametrize(
    ("weights", "available", "budget", "epochs", "expected"),
    [
        ([0.5, 0.5], [8, 16], 16, 1.0, [8, 8]),
        ([0.5, 0.25, 0.25], [4, 16, 16], 16, 1.0, [4, 6, 6]),  # the excess of the first goes to the others equally
        ([0.6, 0.3, 0.1], [10, 10, 100], 60, 2.0, [20, 20, 20]),  # one cap fills another
        ([1 / 3, 1 / 3, 1 / 3], [100, 100, 100], 100, 1.0, [34, 33, 33]),  # a tie goes to the first
        ([0.0, 1.0], [100, 100], 150, 1.5, [0, 150]),
        ([0.9, 0.1], [10, 1000], 100, [0.5, 1.0], [5, 95]),
    ],
)
def test_worked_examples(
    weights: list[float], available: list[int], budget: int, epochs: float | list[float], expected: list[int]
) -> None:
    assert allocate_tokens(weights, available_K=available, token_budget=budget, max_epochs=epochs).tolist() == expected


def test_trillions_of_tokens_are_exact() -> None:
    budget = 10**15 + 7
    tokens_K = allocate_tokens([0.7, 0.2, 0.1], available_K=[10**15] * 3, token_budget=budget, max_epochs=4)
    assert sum(tokens_K.tolist()) == budget


def test_an_epoch_cap_counts_as_the_decimal_it_is_written_as() -> None:
    assert token_caps([10], max_epochs=1.1).tolist() == [11]
    assert token_caps([1000], max_epochs=0.007).tolist() == [7]


def test_an_infeasible_budget_names_what_is_reachable_the_binding_sources_and_two_remedies() -> None:
    with pytest.raises(InfeasibleBudgetError) as error:
        allocate_tokens(
            [0.9, 0.1, 0.0], available_K=[100, 400, 10**6], token_budget=3000, max_epochs=4, names=["rare", "common", "idle"]
        )
    message = str(error.value)
    assert "\n" not in message
    assert "3000" in message and "allow 2000" in message
    assert "binding: rare (at most 400), common" in message and "not used: idle" in message
    assert "lower emit.token_budget to 2000" in message and "raise emit.max_epochs to 6" in message


@given(problems())
def test_the_remedies_of_an_infeasible_budget_work(problem: tuple[np.ndarray, list[int], list[float], int]) -> None:
    weights_K, available, epochs, _ = problem
    reachable = int(token_caps(available, max_epochs=epochs)[weights_K > 0].sum())
    with pytest.raises(InfeasibleBudgetError) as error:
        allocate_tokens(weights_K, available_K=available, token_budget=reachable + 1, max_epochs=epochs)
    allocate_tokens(weights_K, available_K=available, token_budget=reachable, max_epochs=epochs)
    if reachable:
        raised = float(str(error.value).split("raise emit.max_epochs to ")[1].split(" ")[0])
        allocate_tokens(weights_K, available_K=available, token_budget=reachable + 1, max_epochs=raised)


def test_a_budget_beyond_all_caps_is_refused_before_any_mixture_is_known() -> None:
    check_budget([100, 200], token_budget=1200, max_epochs=4, names=["a", "b"])
    with pytest.raises(
        InfeasibleBudgetError, match=r"allow 1200 .* lower emit.token_budget to 1200, or raise emit.max_epochs to 5"
    ):
        check_budget([100, 200], token_budget=1201, max_epochs=4, names=["a", "b"])


@pytest.mark.parametrize(
    ("weights", "problem"),
    [([0.5, 0.6], "sum to 1.1"), ([-0.5, 1.5], "weight of a: -0.5"), ([float("nan"), 1.0], "weight of a: nan")],
)
def test_wrong_weights_are_refused(weights: list[float], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        allocate_tokens(weights, available_K=[10, 10], token_budget=10, max_epochs=1, names=["a", "b"])
