from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stopped_search import stop_after_a_trial

from fastmix_data.recipe.search import SearchSection, StopSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.results.trajectory import Trajectory, TrajectoryRow
from train.search.plan import SearchPlan
from train.search.search import search
from train.search.stopping import FEWEST_UPDATES, find_stand_still, movement, standard_error, why_it_ended

TRAINING = TrainingSection(token_budget=32 * 128 * 800, global_batch=32, sequence_length=128)
SETTINGS = SearchSection(update_interval=8, average_fraction=0.5, stop=StopSection(tolerance=0.01))


def trajectory_of(weights_UK: np.ndarray, *, interval: int = 8) -> Trajectory:
    return Trajectory(
        [TrajectoryRow((u + 1) * interval, 0, row.tolist(), [], 0.0, 0.0, [], [], [], [], []) for u, row in enumerate(weights_UK)]
    )


def settling(num_updates: int, *, halflife: float, noise: float = 0.002, seed: int = 0) -> np.ndarray:
    """Weights that go from (0.2, 0.8) to (0.7, 0.3) and then only jitter."""
    rng = np.random.default_rng(seed)
    first_U = 0.7 - 0.5 * 0.5 ** (np.arange(num_updates) / halflife) + noise * rng.normal(size=num_updates)
    return np.stack([first_U, 1 - first_U], axis=1)


def first_stop(weights_UK: np.ndarray, settings: SearchSection = SETTINGS) -> int | None:
    """The step at which a search with this trajectory would have ended."""
    whole = trajectory_of(weights_UK)
    for number in range(1, len(weights_UK) + 1):
        step = whole.rows[number - 1].step
        if find_stand_still(Trajectory(whole.rows[:number]), step=step, num_steps=800, search=settings):
            return step
    return None


def test_a_settled_mixture_ends_the_search_and_says_so() -> None:
    step = first_stop(settling(100, halflife=2))
    assert step is not None and 200 <= step <= 400
    still = find_stand_still(trajectory_of(settling(100, halflife=2)[: step // 8]), step=step, num_steps=800, search=SETTINGS)
    assert still is not None and still.moved <= 0.01
    text = why_it_ended(still, training=TRAINING, search=SETTINGS)
    assert f"at step {step} of 800" in text and "tolerance 1.0%" in text and "cannot be compared" in text


def test_the_slower_it_settles_the_later_it_ends() -> None:
    steps = [first_stop(settling(100, halflife=halflife)) or 10_000 for halflife in (1, 4, 8, 30)]
    assert steps == sorted(steps) and steps[0] < steps[2] and steps[-1] == 10_000


def answer(weights_UK: np.ndarray) -> np.ndarray:
    return weights_UK[len(weights_UK) // 2 :].mean(axis=0)


def test_a_drift_goes_on_while_it_would_still_move_the_answer() -> None:
    """Windows differ by less than the tolerance from the start, but not by chance."""
    drift = np.linspace(0.5, 0.53, 100) + 1e-4 * np.random.default_rng(0).normal(size=100)
    weights = np.stack([drift, 1 - drift], axis=1)
    assert movement(weights[25:50]) < 0.01
    step = first_stop(weights)
    assert step is not None and step > 400
    assert np.abs(answer(weights[: step // 8]) - answer(weights))[0] <= 0.01 + 1e-3
    assert first_stop(np.stack([drift * 1.5, 1 - drift * 1.5], axis=1)) > step


@pytest.mark.parametrize("seed", range(5))
def test_a_mixture_that_jumps_about_goes_on_though_its_windows_are_alike_now_and_then(seed: int) -> None:
    weights = settling(100, halflife=1, noise=0.2, seed=seed)
    assert min(movement(weights[half : 2 * half]) for half in range(16, 50)) < 0.01
    assert first_stop(weights) is None


def test_a_constant_mixture_ends_as_early_as_is_allowed() -> None:
    constant = np.full((100, 4), 0.25)
    assert first_stop(constant) == 31 * 8  # of 31 updates, 16 are in the second half
    frequent = SETTINGS.model_copy(update={"update_interval": 1})
    rows = trajectory_of(np.full((800, 4), 0.25), interval=1).rows
    stops = [
        row.step for row in rows if find_stand_still(Trajectory(rows[: row.step]), step=row.step, num_steps=800, search=frequent)
    ]
    assert stops[0] == 200  # a quarter of the budget
    assert FEWEST_UPDATES == 16


def test_without_the_key_a_search_uses_up_its_budget() -> None:
    settings = SETTINGS.model_copy(update={"stop": None})
    assert first_stop(np.full((100, 4), 0.25), settings) is None
    assert why_it_ended(None, training=TRAINING, search=settings) == "used up its budget of 3.28M tokens (800 steps)"


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_movement_is_a_share_and_equals_the_worked_sum(seed: int, num_updates: int) -> None:
    weights = np.random.default_rng(seed).dirichlet(np.ones(5), size=num_updates)
    half = num_updates // 2
    later, earlier = weights[half:].mean(axis=0), weights[:half].mean(axis=0)
    assert movement(weights) == pytest.approx(np.maximum(later - earlier, 0).sum()) and 0 <= movement(weights) <= 1


def test_chance_movement_is_seldom_beyond_the_edges_of_the_intervals() -> None:
    """Half the sum over sources of the edges of their intervals lies beyond most sums of chance movements."""
    rng = np.random.default_rng(0)
    beyond = 0
    for _ in range(200):
        weights = 0.1 + 0.01 * rng.normal(size=(64, 10))
        beyond += movement(weights) > 2 * 1.645 * standard_error(weights)
    assert beyond <= 10


def test_a_search_ends_early_and_is_finished(planted_plan: Callable[..., SearchPlan]) -> None:
    plan = planted_plan(
        stop={"tolerance": 0.03},
        update_interval=1,
        token_budget=16 * 32 * 100,
    )
    mixture = search(plan, quiet=True).mixture
    assert not search(plan, quiet=True).did_work
    rows = Trajectory.from_state(pq.read_table(plan.folder.trajectory).to_pylist()).rows
    assert mixture.search.num_steps == rows[-1].step < 100
    stopped = mixture.search.stopped
    assert stopped.startswith("stood still") and f"at step {mixture.search.num_steps} of 100" in stopped
    mean = np.array([row.weights for row in rows if row.step > mixture.search.num_steps / 2]).mean(axis=0)
    assert np.allclose(list(mixture.weights.values()), mean, atol=1e-9)

    def still(number: int) -> object:
        return find_stand_still(Trajectory(rows[:number]), step=rows[number - 1].step, num_steps=100, search=plan.search)

    assert still(len(rows)) is not None
    assert still(len(rows) - 1) is None


def test_a_search_that_stood_still_goes_on_with_its_trials_and_not_with_its_scores(
    planted_plan: Callable[..., SearchPlan],
) -> None:
    settings = {"stop": {"tolerance": 0.5}, "update_interval": 1, "global_batch": 4, "token_budget": 4 * 32 * 480}
    whole = search(planted_plan(name="whole", **settings), quiet=True).mixture
    plan = planted_plan(name="stopped", **settings)
    stop_after_a_trial(plan)
    found = search(plan, quiet=True).mixture
    assert found.search.num_steps == whole.search.num_steps < 240 and found.made_from == whole.made_from
    assert found.trials == whole.trials is not None
