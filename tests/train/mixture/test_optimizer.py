from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.mixture.optimizer import MixtureOptimizer, logit_gradient

UNIFORM = np.full(4, 0.25)


def gradient(weights: np.ndarray, scores: np.ndarray, **options: object) -> np.ndarray:
    defaults: dict = {
        "loss_density_K": np.ones(len(weights)),
        "prior_K": np.full(len(weights), 1 / len(weights)),
        "prior_strength": 0.0,
    }
    return logit_gradient(weights, scores, **{**defaults, **options})


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_logit_gradient_equals_autograd_of_the_one_step_target_loss(num_sources: int, seed: int) -> None:
    """d/dz of the target's first-order change -<v, g(p)>, g being the mean gradient over loss tokens of mixture softmax(z)."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=num_sources), requires_grad=True)
    scores, density = rng.normal(size=num_sources), rng.uniform(0.1, 1, num_sources)
    weights = torch.softmax(logits, 0)
    shares = weights * torch.tensor(density) / (weights @ torch.tensor(density))
    (-(shares @ torch.tensor(scores))).backward()
    found = gradient(weights.detach().numpy(), scores, loss_density_K=density)
    assert logits.grad is not None and np.allclose(found, logits.grad.numpy(), atol=1e-12)


def test_prior_gradient_equals_autograd_of_the_divergence() -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=5), requires_grad=True)
    prior = rng.dirichlet(np.ones(5))
    weights = torch.softmax(logits, 0)
    (weights * (weights / torch.tensor(prior)).log()).sum().backward()
    scores = rng.normal(size=5)
    p = weights.detach().numpy()
    found = gradient(p, scores, prior_K=prior, prior_strength=2.0) - gradient(p, scores)
    assert logits.grad is not None and np.allclose(found, 2.0 * np.std(scores) * logits.grad.numpy(), atol=1e-12)


def test_reliability_shrinks_the_scores_part_and_leaves_the_priors() -> None:
    scores, prior = np.array([3.0, 1.0, 0.0, -2.0]), np.array([0.4, 0.3, 0.2, 0.1])
    pull = gradient(UNIFORM, scores, prior_K=prior, prior_strength=2.0) - gradient(UNIFORM, scores)
    for reliability in (0.0, 0.3):
        found = gradient(UNIFORM, scores, prior_K=prior, prior_strength=2.0, reliability=reliability)
        assert np.allclose(found, pull + reliability * gradient(UNIFORM, scores), atol=1e-12)


def test_a_gradient_smaller_than_the_full_one_makes_as_much_smaller_a_move() -> None:
    full = gradient(UNIFORM, np.array([3.0, 1.0, 0.0, -2.0]))

    def moved(share: float) -> np.ndarray:
        optimizer = MixtureOptimizer(UNIFORM, rule="exponentiated_gradient", learning_rate=0.1)
        optimizer.step(share * full, full_K=full)
        logits = np.log(optimizer.weights_K)
        return logits - logits.mean()

    assert np.allclose(moved(0.25), 0.25 * moved(1.0), atol=1e-12) and np.allclose(moved(4.0), moved(1.0), atol=1e-12)
    assert not moved(0.0).any()


@pytest.mark.parametrize("rule", ["adam", "exponentiated_gradient"])
def test_a_positive_prior_strength_flattens(rule: str) -> None:
    """The reference code's entropy term has the wrong sign: a positive coefficient sharpens."""

    def entropy_after(strength: float) -> float:
        optimizer = MixtureOptimizer(UNIFORM, rule=rule, learning_rate=0.1)
        for _ in range(200):
            optimizer.step(gradient(optimizer.weights_K, np.array([3.0, 1.0, 0.0, -2.0]), prior_strength=strength))
        p = optimizer.weights_K
        return float(-(p * np.log(np.maximum(p, 1e-300))).sum())

    assert entropy_after(5.0) > entropy_after(0.5) > entropy_after(0.0)


@pytest.mark.parametrize("rule", ["adam", "exponentiated_gradient"])
def test_better_aligned_sources_gain_whatever_the_scale_of_scores(rule: str) -> None:
    finals = []
    for scale in (1e-8, 1.0, 1e6):
        optimizer = MixtureOptimizer(UNIFORM, rule=rule, learning_rate=0.1)
        for _ in range(10):
            optimizer.step(gradient(optimizer.weights_K, scale * np.array([2.0, 1.0, 0.0, -1.0])))
        finals.append(optimizer.weights_K)
        assert finals[-1][0] > finals[-1][1] > finals[-1][2:].max() and finals[-1].sum() == pytest.approx(1)
    assert np.allclose(finals[0], finals[1], rtol=1e-6) and np.allclose(finals[1], finals[2], rtol=1e-6)


@pytest.mark.parametrize("rule", ["adam", "exponentiated_gradient"])
def test_state_survives_json_exactly(rule: str) -> None:
    rng = np.random.default_rng(0)
    original = MixtureOptimizer(UNIFORM, rule=rule, learning_rate=0.1)
    for _ in range(3):
        original.step(rng.normal(size=4))
    copy = MixtureOptimizer(UNIFORM, rule=rule, learning_rate=0.1)
    copy.load_state_dict(json.loads(json.dumps(original.state_dict())))
    for _ in range(3):
        move = rng.normal(size=4)
        original.step(move)
        copy.step(move)
    assert np.array_equal(original.weights_K, copy.weights_K)
