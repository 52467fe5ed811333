from __future__ import annotations

import numpy as np
import pytest

from train.scores.shrinkage import ScoreReliability


def after_updates(means_K: np.ndarray, *, num_updates: int, seed: int, deviation: float = 1.0) -> ScoreReliability:
    """Reliability of scores of one sequence of ten tokens a source and update, whose alignments have these means per token."""
    reliability, generator = ScoreReliability(len(means_K)), np.random.default_rng(seed)
    for _ in range(num_updates):
        noise_K = generator.normal(0, deviation * 10**0.5, len(means_K))
        reliability.add(10 * means_K + noise_K, np.full(len(means_K), 10.0), importance_K=np.ones(len(means_K)))
    return reliability


def test_it_is_the_worked_share() -> None:
    reliability = ScoreReliability(2)
    ones_K = np.ones(2)
    reliability.add(np.array([3.0, -1.0]), ones_K, importance_K=ones_K)  # centred: 2, -2
    assert reliability.value == 0
    reliability.add(np.array([1.0, 1.0]), ones_K, importance_K=ones_K)  # centred: 0, 0
    # Scores 1 and -1 on two tokens each: signal 2 + 2. Residuals 1, 1, 1, 1 with freedom 2 (2 - 2/2): variance 2, one degree of freedom.
    assert reliability.value == pytest.approx(1 - 2 / 4)


@pytest.mark.parametrize("num_updates", [4, 16, 64])
def test_sources_that_differ_by_chance_only_keep_little_and_different_ones_nearly_all(num_updates: int) -> None:
    same = [after_updates(np.zeros(12), num_updates=num_updates, seed=seed).value for seed in range(200)]
    assert np.mean(same) < 0.25 and np.median(same) < 0.2
    different = [after_updates(np.linspace(-2, 2, 12), num_updates=num_updates, seed=seed).value for seed in range(200)]
    assert np.mean(different) > 0.9
    assert after_updates(np.linspace(-2, 2, 12), num_updates=num_updates, seed=0, deviation=0.0).value == pytest.approx(1)


def test_what_all_sources_share_is_no_signal() -> None:
    plain, shifted = ScoreReliability(3), ScoreReliability(3)
    generator = np.random.default_rng(0)
    for _ in range(8):
        alignment_K, tokens_K = generator.normal(0, 1, 3), generator.integers(1, 5, 3).astype(float)
        importance_K = generator.random(3)
        plain.add(alignment_K, tokens_K, importance_K=importance_K)
        shifted.add(alignment_K + 100 * tokens_K, tokens_K, importance_K=importance_K)
    assert shifted.value == pytest.approx(plain.value)


def test_absent_sources_do_not_count_and_one_alone_says_nothing() -> None:
    reliability, wider = ScoreReliability(2), ScoreReliability(4)
    generator = np.random.default_rng(1)
    for _ in range(5):
        alignment_K, ones_K = generator.normal([1, -1], 1), np.ones(2)
        reliability.add(alignment_K, ones_K, importance_K=ones_K)
        wider.add(np.append(alignment_K, [0, 0]), np.append(ones_K, [0, 0]), importance_K=np.ones(4))
    assert wider.value == pytest.approx(reliability.value) and 0 < reliability.value < 1
    alone = ScoreReliability(2)
    for _ in range(5):
        alone.add(np.array([1.0, 0.0]), np.array([1.0, 0.0]), importance_K=np.ones(2))
    assert alone.value == 0


def test_it_goes_on_from_its_state() -> None:
    one = after_updates(np.linspace(-1, 1, 4), num_updates=5, seed=3)
    other = ScoreReliability(4)
    other.load_state_dict(one.state_dict())
    for reliability in (one, other):
        reliability.add(np.arange(4.0), np.ones(4), importance_K=np.ones(4))
    assert other.value == one.value
