from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.recipe.search import SearchSection
from train.mixture.optimizer import MixtureOptimizer, logit_gradient

UNIFORM = np.full(4, 0.25)


def gradient(weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return logit_gradient(weights, scores, loss_density_K=np.ones(len(weights)))


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_logit_gradient_equals_autograd_of_the_one_step_target_loss(num_sources: int, seed: int) -> None:
    """d/dz of the target's first-order change -<v, g(p)>, g being the mean gradient over loss tokens of mixture softmax(z)."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=num_sources), requires_grad=True)
    scores, density = rng.normal(size=num_sources), rng.uniform(0.1, 1, num_sources)
    weights = torch.softmax(logits, 0)
    shares = weights * torch.tensor(density) / (weights @ torch.tensor(density))
    (-(shares @ torch.tensor(scores))).backward()
    found = logit_gradient(weights.detach().numpy(), scores, loss_density_K=density)
    assert logits.grad is not None and np.allclose(found, logits.grad.numpy(), atol=1e-12)


def test_a_move_of_exponentiated_gradient_goes_by_score_alone_and_is_as_long_whatever_their_scale() -> None:
    weights, scores = np.array([0.7, 0.2, 0.0999, 0.0001]), np.array([3.0, 1.0, 0.0, -2.0])
    for scale in (1e-6, 1e6):
        optimizer = MixtureOptimizer(weights, rule="exponentiated_gradient", learning_rate=0.1)
        optimizer.step(gradient(weights, scale * scores))
        moved = np.log(optimizer.weights_K / weights)
        assert np.diff(moved) / np.diff(scores) == pytest.approx(np.diff(moved)[0] / np.diff(scores)[0])
        centred = scores - weights @ scores
        assert np.diff(moved)[0] == pytest.approx(0.1 * np.diff(centred)[0] / np.sqrt((centred**2).mean()))


@pytest.mark.parametrize(("num_updates", "rate"), [(10, 0.3), (100, 0.2), (1000, 0.05)])
def test_a_logit_may_travel_as_far_in_a_short_run_as_in_a_long_one_within_bounds_of_a_move(num_updates: int, rate: float) -> None:
    assert SearchSection().rule.rate(num_updates) == pytest.approx(rate)
    assert SearchSection(method="paper").rule.rate(num_updates) == 0.01


def test_the_papers_rule_is_adam_on_the_logits() -> None:
    """Against PyTorch's, whose epsilon is nothing beside these gradients; the betas are ours."""
    rng = np.random.default_rng(0)
    optimizer = MixtureOptimizer(UNIFORM, rule=SearchSection(method="paper").rule.optimizer, learning_rate=0.01)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    expected = torch.optim.Adam([logits], lr=0.01, betas=(0.9, 0.99), eps=1e-12)
    for _ in range(5):
        drawn = rng.normal(size=4)
        logits.grad = torch.tensor(drawn)
        expected.step()
        optimizer.step(drawn)
    assert optimizer.weights_K == pytest.approx(torch.softmax(logits, 0).detach().numpy(), rel=1e-9)


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
