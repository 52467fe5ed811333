"""The best mixture by laws is the constrained minimum near its centre."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fastmix_data.recipe.constraints import ConstraintsSection
from train.baselines.laws.additive import AdditiveLaw
from train.baselines.laws.best_mixture import best_mixture, without_crumbs
from train.baselines.laws.law import SmoothLaw
from train.baselines.laws.log_linear import LogLinearLaw
from train.baselines.olmix import olmix_weights
from train.baselines.swarm import swarm_weights
from train.mixture.constraints import MixtureConstraints, stated_constraints

UNIFORM_K = np.full(4, 0.25)


def constraints(**section: Any) -> MixtureConstraints:
    return stated_constraints(ConstraintsSection.model_validate(section), sources=("a", "b", "c", "d"))


def drawn_law(kind: str, rng: np.random.Generator) -> SmoothLaw:
    if kind == "additive":
        return AdditiveLaw(1.0, rng.normal(size=4), rng.uniform(0.2, 0.8))
    return LogLinearLaw(0.0, rng.normal(size=4))


@given(
    kind=st.sampled_from(["additive", "log-linear"]),
    seed=st.integers(0, 1000),
    kl_strength=st.sampled_from([0.01, 0.1, 1.0]),
    ceiling=st.sampled_from([1.0, 0.5]),
)
@example(
    kind="log-linear", seed=894, kl_strength=0.01, ceiling=0.5
)  # a long step took weights below what the projection tells apart
@settings(max_examples=10, deadline=None)
def test_it_is_the_constrained_minimum(kind: str, seed: int, kl_strength: float, ceiling: float) -> None:
    rng = np.random.default_rng(seed)
    laws, importance_G = [drawn_law(kind, rng) for _ in range(3)], rng.dirichlet(np.ones(3))
    centre_K = rng.dirichlet(np.full(4, 5.0))

    def objective(weights_K: np.ndarray) -> float:
        divergence = weights_K @ np.log(np.maximum(weights_K, 1e-300) / centre_K)
        loss = sum(w * law.predict(weights_K[None])[0] for w, law in zip(importance_G, laws, strict=True))
        return float(loss + kl_strength * divergence)

    found_K = best_mixture(
        laws, importance_G=importance_G, centre_K=centre_K, constraints=constraints(ceiling=ceiling), kl_strength=kl_strength
    )
    assert found_K.sum() == pytest.approx(1)
    assert found_K.max() <= ceiling + 1e-9
    oracle = minimize(
        objective,
        UNIFORM_K,
        bounds=[(1e-12, ceiling)] * 4,
        constraints={"type": "eq", "fun": lambda weights_K: weights_K.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert objective(found_K) <= oracle.fun + 1e-6


def test_without_a_pull_the_additive_optimum_is_the_closed_form() -> None:
    """h_k ~ c_k^(1 / (1 - gamma)), but for the 1e-4 that is added to each weight."""
    gain_K, exponent = np.array([4.0, 2.0, 1.0, 3.0]), 0.5
    law = AdditiveLaw(0.0, np.log(gain_K), exponent)
    found_K = best_mixture([law], importance_G=np.ones(1), centre_K=UNIFORM_K, constraints=constraints(), kl_strength=1e-9)
    assert found_K == pytest.approx(gain_K**2 / (gain_K**2).sum(), abs=1e-3)


def test_laws_without_evidence_answer_the_centre() -> None:
    centre_K = np.array([0.1, 0.2, 0.3, 0.4])
    flat = LogLinearLaw(0.0, np.zeros(4))
    assert best_mixture([flat], importance_G=np.ones(1), centre_K=centre_K, constraints=constraints()) == pytest.approx(centre_K)


def test_crumbs_are_left_out_unless_a_floor_asks_for_them() -> None:
    weights_K = np.array([0.6, 0.398, 0.001, 0.001])
    found_K = without_crumbs(weights_K, smallest=2e-3, constraints=constraints(floor={"d": 0.001}))
    assert found_K[2] < 1e-12 and found_K[3] == pytest.approx(0.001) and found_K.sum() == pytest.approx(1)


def test_olmix_prefers_what_lowers_the_loss_and_leaves_no_crumbs() -> None:
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=32, seed=0)
    losses_GN = 2 + np.exp(weights_NK @ np.array([-1.5, 2.0, 3.0, -0.5]))[None]
    found_K = olmix_weights(
        weights_NK, losses_GN, importance_G=np.ones(1), prior_K=UNIFORM_K, constraints=constraints(ceiling={"a": 0.7}), seed=0
    )
    assert found_K[0] > found_K[3] > found_K[1] and found_K[0] <= 0.7
    assert ((found_K < 1e-12) | (found_K >= 2e-3)).all()
