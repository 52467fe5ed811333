"""The other methods: their fits find a planted optimum, their updates are those of the papers, their runs see what they should."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.load import load_recipe
from train.baselines.cost import SearchCost, flops, matmul_parameters
from train.baselines.doge import doge_scores, doge_update
from train.baselines.doremi import doremi_update
from train.baselines.regmix import regmix_weights, smallest_leaf
from train.baselines.reweighting_rules import search_doge, search_doremi
from train.baselines.swarm import swarm_weights
from train.checkpoints.checkpoints import CheckpointPlan
from train.mixture.constraints import MixtureConstraints, stated_constraints
from train.mixture.mixmin import mixmin_loss, mixmin_weights
from train.proxy.engine import process_group
from train.proxy.training import train_on_mixture
from train.search.plan import SearchPlan, plan_search

UNIFORM_K = np.full(4, 0.25)


def bounded(**section: Any) -> MixtureConstraints:
    return stated_constraints(ConstraintsSection.model_validate(section), sources=("a", "b", "c", "d"))


def test_a_swarm_is_of_mixtures_all_different_from_sparse_to_even() -> None:
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=64, seed=1)
    assert weights_NK.shape == (64, 4)
    assert np.allclose(weights_NK.sum(axis=1), 1)
    assert ((weights_NK == 0) | (weights_NK >= 2e-4)).all()
    distance_NN = np.abs(weights_NK[:, None] - weights_NK[None]).sum(axis=2)
    assert (distance_NN[np.triu_indices(64, 1)] > 1e-5).all()
    assert weights_NK.max(axis=1).min() < 0.5 < 0.99 < weights_NK.max(axis=1).max()
    assert np.abs(weights_NK.mean(axis=0) - 0.25).max() < 0.15


@given(small=st.integers(1, 20), more=st.integers(0, 20), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_smaller_swarm_is_the_beginning_of_a_larger_one(small: int, more: int, seed: int) -> None:
    large_NK = swarm_weights(UNIFORM_K, num_mixtures=small + more, seed=seed)
    assert np.array_equal(swarm_weights(UNIFORM_K, num_mixtures=small, seed=seed), large_NK[:small])


def test_a_swarm_over_one_source_ends() -> None:
    assert swarm_weights(np.ones(1), num_mixtures=3, seed=0).tolist() == [[1.0]] * 3


def test_regmix_finds_a_planted_optimum() -> None:
    best_K = np.array([0.6, 0.3, 0.1, 0.0])
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=256, seed=0)
    losses_N = ((weights_NK - best_K) ** 2).sum(axis=1)
    found_K, note = regmix_weights(
        weights_NK,
        losses_N[None],
        importance_G=np.ones(1),
        prior_K=UNIFORM_K,
        constraints=bounded(),
        seed=0,
        num_candidates=20_000,
    )
    assert not note
    assert found_K.sum() == pytest.approx(1)
    assert np.abs(found_K - best_K).sum() < 0.25


def test_regmix_splits_on_a_swarm_of_thirty_two() -> None:
    """With LightGBM's own smallest leaf of 20 the trees would be constants and every candidate the best."""
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=32, seed=0)
    losses_GN, importance_G = np.array([-weights_NK[:, 0], -weights_NK[:, 2]]), np.array([0.2, 0.8])
    found_K, _ = regmix_weights(
        weights_NK,
        losses_GN,
        importance_G=importance_G,
        prior_K=UNIFORM_K,
        constraints=bounded(),
        seed=0,
        num_candidates=5_000,
    )
    assert found_K[2] > 0.9
    assert smallest_leaf(32) == 1


@pytest.mark.parametrize(
    ("bounds", "note"),
    [
        ({"ceiling": {"c": 0.4}}, ""),
        ({"ceiling": 0.4, "groups": {"pair": {"sources": ["a", "b"], "min": 0.5}}}, ""),  # passed by one candidate in a hundred
        (
            {"pinned": {"a": 0.25}, "ceiling": {"c": 0.4}},
            "0 of 200,000 candidates keep to the constraints; 10,000 were projected",
        ),
    ],
    ids=["cap", "narrow", "pinned"],
)
def test_regmix_answers_within_the_constraints(bounds: dict[str, Any], note: str) -> None:
    """The mean of candidates that are all allowed; where none can be, projected ones, which is said."""
    weights_NK, inside = swarm_weights(UNIFORM_K, num_mixtures=64, seed=0), bounded(**bounds)
    losses_N = -weights_NK[:, 2] - 0.5 * weights_NK[:, 0]
    found_K, said = regmix_weights(
        weights_NK,
        losses_N[None],
        importance_G=np.ones(1),
        prior_K=UNIFORM_K,
        constraints=inside,
        seed=0,
        num_candidates=20_000,
        num_averaged=16,
    )
    assert inside.allows(found_K[None]).all() and found_K.sum() == pytest.approx(1)
    assert found_K[2] > 0.3
    assert said.startswith(note) and bool(said) == bool(note)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_mixmin_s_mixture_is_the_constrained_minimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_likelihoods_NK = rng.normal(size=(60, 4)) * rng.choice([0.5, 3.0]) - 200
    importance_N = rng.uniform(0.5, 2, 60) / 60
    bounds = bounded(floor={"a": 0.05}, ceiling={"b": 0.3}, groups={"pair": {"sources": ["c", "d"], "max": 0.5}})

    def objective(weights_K: np.ndarray) -> float:
        return mixmin_loss(weights_K, log_likelihoods_NK, importance_N=importance_N)

    found_K = mixmin_weights(log_likelihoods_NK, importance_N=importance_N, constraints=bounds)
    assert bounds.project(found_K) == pytest.approx(found_K, abs=1e-9)
    oracle = minimize(
        objective,
        bounds.project(UNIFORM_K),
        bounds=list(zip(bounds.floor_K, bounds.ceiling_K, strict=True)),
        constraints=[
            {"type": "eq", "fun": lambda weights_K: weights_K.sum() - 1},
            {"type": "ineq", "fun": lambda weights_K: 0.5 - weights_K[2:].sum()},
        ],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert objective(found_K) <= oracle.fun + 1e-6


def test_mixmin_finds_the_shares_that_sequences_were_drawn_by() -> None:
    rng = np.random.default_rng(0)
    shares_K, spoken_KV = np.array([0.5, 0.3, 0.2, 0.0]), rng.dirichlet(np.ones(30), size=4)
    source_N = rng.choice(4, size=4000, p=shares_K)
    counts_NV = rng.multinomial(12, spoken_KV[source_N])
    found_K = mixmin_weights(counts_NV @ np.log(spoken_KV).T, importance_N=np.full(4000, 1 / 4000), constraints=bounded())
    assert found_K == pytest.approx(shares_K, abs=0.03)


def test_mixmin_leaves_out_a_model_that_may_have_no_share_however_much_likelier_it_is() -> None:
    log_likelihoods_NK = np.array([[0.0, -5000.0, -5001.0, -9000.0]] * 3)
    found_K = mixmin_weights(log_likelihoods_NK, importance_N=np.ones(3), constraints=bounded(ceiling={"a": 0.0}))
    assert found_K == pytest.approx([0, 1, 0, 0], abs=1e-3)


def test_doge_moves_weights_by_its_clipped_relative_alignment() -> None:
    """Worked by hand: mean norm 2, so scores 0.1 * (3/2, 0, 5 of 20/2) and weights 1/3 * exp(score / 0.5)."""
    scores_K = doge_scores(np.array([3.0, -4.0, 20.0]), np.array([1.0, 2.0, 3.0]), learning_rate=0.1)
    assert scores_K == pytest.approx([0.15, 0.0, 0.5])
    raised = np.exp([0.3, 0.0, 1.0])
    assert doge_update(np.full(3, 1 / 3), scores_K, mu=0.5) == pytest.approx(raised / raised.sum())


def test_doge_leaves_the_norms_of_unseen_sources_out_of_the_mean() -> None:
    scores_K = doge_scores(np.array([3.0, 0.0]), np.array([3.0, np.nan]), learning_rate=0.1)
    assert scores_K == pytest.approx([0.1, 0.0])


def test_doremi_raises_weights_by_excess_and_smooths() -> None:
    """Worked by hand: 1/2 * (e^0.5, 1) normalised is (0.6225, 0.3775); with smoothing 0.2: 0.8 of it and 0.1."""
    updated_K = doremi_update(np.array([0.5, 0.5]), np.array([0.5, 0.0]), smoothing=0.2)
    assert updated_K == pytest.approx([0.8 * 0.62246 + 0.1, 0.8 * 0.37754 + 0.1], abs=1e-4)


@given(excess=st.lists(st.floats(0, 50), min_size=2, max_size=6), steps=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_doremi_keeps_every_weight_above_its_smoothing(excess: list[float], steps: int) -> None:
    weights_K = np.full(len(excess), 1 / len(excess))
    for _ in range(steps):
        weights_K = doremi_update(weights_K, np.array(excess), smoothing=0.1)
    assert weights_K.sum() == pytest.approx(1)
    assert weights_K.min() >= 0.1 / len(excess) - 1e-12


@pytest.fixture
def plan(planted_recipe: Callable[..., Path]) -> SearchPlan:
    return plan_search(load_recipe(planted_recipe(token_budget=16 * 32 * 40)))


class Killed(BaseException):
    """As little as a signal that cannot be caught is it waited for."""


def killed_and_again(train: Callable[..., Any], folder: Path) -> Any:
    """What comes of a training that is killed after a checkpoint, and started again."""
    kept, steps = CheckpointPlan(folder, {}, num_steps=8), 0

    def on_tokens(_: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 29:
            raise Killed

    with pytest.raises(Killed):
        train(on_tokens=on_tokens, kept=kept)
    found = train(on_tokens=on_tokens, kept=kept)
    assert 40 < steps < 69  # it went on from where it was
    return found


def test_doge_prefers_the_source_of_the_target_killed_or_not(plan: SearchPlan, tmp_path: Path) -> None:
    told: list[int] = []
    with process_group(rank=0, world_size=1):
        weights_K, cost = search_doge(plan.proxy, plan.target, plan.search, on_tokens=told.append)
        train = partial(search_doge, plan.proxy, plan.target, plan.search)
        again_K, cost_again = killed_and_again(train, tmp_path / "checkpoints")
    assert again_K.tolist() == weights_K.tolist() and cost_again.tokens == cost.tokens
    found = dict(zip(plan.catalog.sources, weights_K.tolist(), strict=True))
    assert found["same"] > max(found["noise"], found["other"])
    assert sum(told) == 40 * 16 * 32
    assert cost.tokens == 40 * (16 + 8) * 32  # every step takes a target gradient


def test_doremi_raises_the_source_that_only_its_reference_knows_killed_or_not(plan: SearchPlan, tmp_path: Path) -> None:
    with process_group(rank=0, world_size=1):
        only_other_K = np.array([float(name == "other") for name in plan.catalog.sources])
        reference = train_on_mixture(plan.proxy, only_other_K, seed=0).engine
        weights_K, cost = search_doremi(plan.proxy, reference=reference, on_tokens=lambda _: None)
        again_K, _ = killed_and_again(partial(search_doremi, plan.proxy, reference=reference), tmp_path / "checkpoints")
        reference.close()
    assert again_K.tolist() == weights_K.tolist()
    found = dict(zip(plan.catalog.sources, weights_K.tolist(), strict=True))
    assert found["other"] > 0.5
    assert cost.tokens == 40 * 16 * 32


def test_flops_count_the_parameters_of_matrix_products(plan: SearchPlan) -> None:
    hidden, inner, vocabulary = 32, 48, 64
    block = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    assert matmul_parameters(plan.proxy) == block + hidden + vocabulary * hidden
    assert flops(100, trained=10, forward_only=1) == 6200


def test_costs_add_up() -> None:
    assert SearchCost(1, 2.0, 3.0) + SearchCost(10, 20.0, 30.0) == SearchCost(11, 22.0, 33.0)
