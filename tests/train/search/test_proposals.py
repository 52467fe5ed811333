"""What trials choose between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from train.search.plan import SearchPlan
from train.search.proposals import propose
from train.search.start import Start

MakePlan = Callable[..., SearchPlan]
COUNTED, STATED, SCORES = np.array([0.15, 0.6, 0.25]), np.array([0.1, 0.3, 0.6]), np.array([0.05, 0.85, 0.1])


def proposed(plan: SearchPlan, initial_K: np.ndarray = COUNTED, scores_K: np.ndarray = SCORES) -> dict[str, list[float]]:
    start = Start(initial_K, COUNTED, document_width_K=np.zeros(3), seconds=0.0)
    return {name: weights_K.tolist() for name, weights_K in propose(plan, start=start, scores_K=scores_K).items()}


def test_of_a_counted_start_its_square_is_proposed_and_beside_a_stated_one_the_count(planted_plan: MakePlan) -> None:
    counted, stated = proposed(planted_plan(initial_weights="count")), proposed(planted_plan(), STATED)
    assert list(counted) == ["start", "scores", "concentrated", "proportional"]
    assert counted["concentrated"] == pytest.approx(COUNTED**2 / (COUNTED**2).sum(), abs=1e-3)
    assert counted["proportional"] == pytest.approx([1 / 3] * 3) and counted["start"] == COUNTED.tolist()
    assert list(stated) == ["start", "scores", "count", "proportional"]
    assert stated["start"] == STATED.tolist() and stated["count"] == COUNTED.tolist()


def test_what_is_nearly_another_is_left_out(planted_plan: MakePlan) -> None:
    near = COUNTED + np.array([0.005, 0, -0.005])
    assert list(proposed(planted_plan(initial_weights="count"), scores_K=near)) == ["start", "concentrated", "proportional"]
    assert list(proposed(planted_plan(), np.full(3, 1 / 3), near)) == ["start", "scores"]


def test_all_that_is_proposed_is_within_the_constraints(planted_plan: MakePlan) -> None:
    plan = planted_plan(initial_weights="count", constraints={"ceiling": {"same": 0.6}, "floor": {"noise": 0.1}})
    found = proposed(plan, scores_K=np.array([0.2, 0.5, 0.3]))
    assert len(found) == 4 and plan.constraints.allows(np.array(list(found.values()))).all()
    # What rests at its ceiling stays there: its square would say less than the count does.
    assert found["concentrated"][1] == pytest.approx(0.6)
