"""Rules that move the weights of targets, on worked examples and against what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from train.target.target_weights import (
    ReferenceLosses,
    Rule,
    TargetBalance,
    TargetLossEstimates,
    limit_multipliers,
    measured_steps,
    worst_case_weights,
)

Excesses = st.lists(st.floats(-3, 3), min_size=2, max_size=8).map(np.array)


@given(Excesses, st.floats(0.1, 20))
def test_worst_case_weights_are_the_gradient_of_the_smooth_maximum(excess_G: np.ndarray, sharpness: float) -> None:
    def smooth_maximum(values_G: np.ndarray) -> float:
        return float(np.log(np.exp(sharpness * (values_G - excess_G.max())).sum()) / sharpness)

    shift = 1e-5
    expected_G = [
        (smooth_maximum(excess_G + shift * unit_G) - smooth_maximum(excess_G - shift * unit_G)) / (2 * shift)
        for unit_G in np.eye(len(excess_G))
    ]
    assert worst_case_weights(excess_G, sharpness=sharpness, spread=0.0) == pytest.approx(expected_G, abs=1e-4)


@given(Excesses, st.floats(-5, 5))
def test_worst_case_weights_are_a_share_of_each_and_see_differences_only(excess_G: np.ndarray, shift: float) -> None:
    weights_G = worst_case_weights(excess_G)
    assert weights_G.sum() == pytest.approx(1) and weights_G.min() >= 0.05 / len(excess_G)
    assert weights_G[excess_G.argmax()] == weights_G.max()
    assert worst_case_weights(excess_G + shift) == pytest.approx(weights_G)


def test_limits_on_a_problem_with_a_known_answer_end_at_its_multiplier() -> None:
    """Minimise (y - 1)^2 such that y <= 1/4, by descent: there the gradient is -3/2, which a multiplier of 3/2 cancels."""
    remembered_G, y = np.zeros(1), 0.0
    for _ in range(400):
        remembered_G, added_G = limit_multipliers(remembered_G, np.array([y]), tolerance=0.25, penalty=1.0, rate=0.2)
        y -= 0.1 * (2 * (y - 1) + added_G[0])
    assert y == pytest.approx(0.25, abs=1e-6)
    assert remembered_G[0] == pytest.approx(1.5, abs=1e-6)


def test_a_limit_that_is_kept_leaves_the_recipe_weights() -> None:
    balance = TargetBalance(np.array([0.8, 0.2]), rule="limits")
    balance.update(np.array([0.0, 0.1]))
    violated_G = balance.weights_G
    assert violated_G[1] > 0.5
    for _ in range(3):
        balance.update(np.array([-0.2, -0.2]))
    assert balance.weights_G == pytest.approx([0.8, 0.2])


def test_the_recipe_chooses_the_rule_and_worst_case_starts_from_uniform() -> None:
    sources = {"a": 3.0, "b": 1.0}
    fixed = TargetBalance.of_section(TargetSection(sources=sources))
    fixed.update(np.array([0.0, 9.0]))
    assert not fixed.moves and fixed.weights_G == pytest.approx([0.75, 0.25])
    limits = TargetBalance.of_section(TargetSection(sources=sources, not_worse_than="uniform", limit_tolerance=0.5))
    limits.update(np.array([0.0, 0.4]))
    assert limits.moves and limits.weights_G == pytest.approx([0.75, 0.25])
    worst = TargetBalance.of_section(TargetSection(sources=sources, not_worse_than="uniform", worst_case=True))
    assert worst.moves and worst.weights_G == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("rule", ["worst_case", "limits"])
def test_a_restored_balance_goes_on_as_the_saved_one(rule: Rule) -> None:
    first = TargetBalance(np.array([0.6, 0.4]), rule=rule)
    first.update(np.array([-0.01, 0.02]))
    second = TargetBalance(np.array([0.6, 0.4]), rule=rule)
    second.load_state_dict(first.state_dict())
    assert second.weights_G.tolist() == first.weights_G.tolist()
    for balance in (first, second):
        balance.update(np.array([-0.02, 0.01]))
    assert second.weights_G.tolist() == first.weights_G.tolist()


def test_a_target_absent_from_a_batch_keeps_its_estimate() -> None:
    estimates = TargetLossEstimates(3)
    estimates.add(np.array([[20.0, 10.0], [40.0, 10.0], [0.0, 0.0]]))
    estimates.add(np.array([[30.0, 10.0], [0.0, 0.0], [0.0, 0.0]]))
    first, second, third = estimates.losses()
    assert first == pytest.approx((0.8 * 20 + 30) / (0.8 * 10 + 10)) and second == 4.0 and third is None
    restored = TargetLossEstimates(3)
    restored.load_state_dict(estimates.state_dict())
    assert restored.losses() == estimates.losses()


def test_reference_losses_are_linear_between_the_steps_measured() -> None:
    reference = ReferenceLosses([10, 20], [[4.0, 8.0], [2.0, 7.0]], num_sequences=1, end_G=[2.0, 7.0])
    assert [reference.at(step).tolist() for step in (0, 10, 15, 99)] == [[4, 8], [4, 8], [3, 7.5], [2, 7]]


@pytest.mark.parametrize("num_targets", [2, 5, 40])
def test_measuring_costs_a_tenth_of_training_at_most(num_targets: int) -> None:
    search, training = SearchSection(update_interval=8), TrainingSection(token_budget=32 * 128 * 1000)
    steps = measured_steps(search, training, num_targets=num_targets)
    assert steps[0] == 8 and all(step % 8 == 0 for step in steps) and steps[-1] <= 1000
    forward_passes = num_targets * 32 / 3
    assert (len(steps) - 1) * forward_passes <= 0.1 * 1000 * 32
    assert num_targets > 5 or np.diff(steps).max() <= 24
