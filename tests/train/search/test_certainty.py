from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.results.trajectory import Trajectory, TrajectoryRow
from train.search.certainty import (
    Evidence,
    averaged_weights,
    block_means,
    certainty_of,
    evidence_block,
    groups_of_pairs,
    interchangeable_pairs,
    ratio_and_influence,
    signal_to_noise,
)
from train.search.plan import SearchPlan
from train.search.search import search


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], *, memory: float) -> np.ndarray:
    """A stationary AR(1) series along the first axis with unit innovations."""
    noise = rng.normal(size=shape)
    noise[0] /= (1 - memory**2) ** 0.5
    for t in range(1, shape[0]):
        noise[t] += memory * noise[t - 1]
    return noise


def planted_evidence(
    scores_K: list[float], *, num_updates: int = 60, noise: float = 0.2, losses_K: list[float] | None = None, seed: int = 0
) -> Evidence:
    """Sources with known scores and losses, seen with 100 tokens at about four updates of five."""
    rng = np.random.default_rng(seed)
    num_sources = len(scores_K)
    divisor_UK = 100.0 * (rng.random((num_updates, num_sources)) < 0.8)
    seen_UK = np.array(scores_K) + noise * rng.normal(size=(num_updates, num_sources))
    losses = np.array(losses_K or range(num_sources)) + 0.02 * rng.normal(size=(num_updates, num_sources))
    return Evidence(seen_UK * divisor_UK, divisor_UK, losses * divisor_UK)


@pytest.mark.parametrize(("memory", "length"), [(0.0, 60), (0.5, 60), (0.5, 200), (0.8, 200)])
def test_interval_covers_the_mean_of_a_correlated_trajectory(memory: float, length: int) -> None:
    rng = np.random.default_rng(1)
    covered, trials = 0, 200
    for trial in range(trials):
        noise = 0.01 * autoregressive(rng, (length,), memory=memory)
        mean, low, high = averaged_weights(np.stack([0.5 + noise, 0.5 - noise], axis=1), num_resamples=300, seed=trial)
        assert mean.sum() == pytest.approx(1) and np.all(low <= mean) and np.all(mean <= high)
        covered += low[0] <= 0.5 <= high[0]
    assert 0.75 * trials <= covered <= 0.97 * trials  # nominal 90%; blocks of a correlated series see a little too little


def test_one_update_gives_a_point_interval() -> None:
    mean, low, high = averaged_weights(np.array([[0.3, 0.7]]))
    assert mean.tolist() == low.tolist() == high.tolist() == [0.3, 0.7]


def test_an_interval_stays_a_share_and_does_not_depend_on_how_many_sources_there_are() -> None:
    weights = np.random.default_rng(0).dirichlet(np.full(200, 0.05), size=40)
    mean, low, high = averaged_weights(weights)
    assert (low >= 0).all() and (high <= 1).all() and (low <= mean).all() and (mean <= high).all()
    part = averaged_weights(np.concatenate([weights[:, 150:152], 1 - weights[:, 150:152].sum(1, keepdims=True)], axis=1))
    assert np.allclose(part[1][:2], low[150:152]) and np.allclose(part[2][:2], high[150:152])


def test_block_variance_of_the_mean_is_that_of_resampling_and_of_repetition() -> None:
    rng = np.random.default_rng(0)
    length, block = 120, 11
    series = autoregressive(rng, (length, 1), memory=0.5)
    starts = rng.integers(0, length - block + 1, (20_000, length // block))
    means = np.stack([series[starts + i, 0] for i in range(block)]).mean(axis=(0, 2))
    closed = float((block_means(series, block=block) ** 2).sum())
    assert closed * (length - block) / length == pytest.approx(means.var() * (length // block * block) / length, rel=0.05)
    repeated = [float((block_means(autoregressive(rng, (length, 1), memory=0.5), block=block) ** 2).sum()) for _ in range(300)]
    true = 1 / (1 - 0.5) ** 2 / length
    assert np.mean(repeated) == pytest.approx(true, rel=0.2)


@given(st.integers(0, 1000))
def test_products_of_block_means_are_a_covariance(seed: int) -> None:
    """The variance of a difference of two series is that of the series of differences."""
    series = np.random.default_rng(seed).normal(size=(30, 2))
    x = block_means(series, block=3)
    covariance = x.T @ x
    difference = float((block_means(series[:, :1] - series[:, 1:], block=3) ** 2).sum())
    assert covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1] == pytest.approx(difference)


def test_a_ratio_weighs_by_tokens_and_an_absent_source_adds_nothing() -> None:
    sums, divisor = np.array([[6.0], [0.0], [2.0]]), np.array([[2.0], [0.0], [2.0]])
    ratio, influence = ratio_and_influence(sums, divisor)
    assert ratio.tolist() == [2.0] and influence[1, 0] == 0 and influence.mean() == pytest.approx(0)


def test_signal_to_noise_has_the_sign_of_the_score_and_the_size_of_mean_over_standard_error() -> None:
    snr = np.mean([signal_to_noise(planted_evidence([0.1, 0.0, -0.1], num_updates=100, seed=s)) for s in range(40)], axis=0)
    expected = 0.1 / (0.2 / (0.8 * 100) ** 0.5)  # four updates of five, noise 0.2
    assert snr[0] == pytest.approx(expected, rel=0.2) and snr[2] == pytest.approx(-expected, rel=0.2) and abs(snr[1]) < 0.6


def test_a_source_like_the_mixture_is_seldom_beyond_two() -> None:
    beyond = sum(abs(signal_to_noise(planted_evidence([0.0], seed=s))[0]) > 2 for s in range(300))
    assert beyond <= 30  # 5% if the error were known


def without_signal(
    rng: np.random.Generator, *, num_updates: int, remembered: float, scored_batch: int, memory: float = 0.8
) -> Trajectory:
    """Forty sources, none of which helps a target whose gradient is noise, but is remembered.

    Args:
        remembered: how far sources' gradients differ from each other always, beside how far those of their batches do: that much of a
            score is noise that returns in the next.
    """
    num_sources, size, rows = 40, 30, []
    always_KD = remembered * rng.normal(size=(num_sources, size))
    target_D, weight = np.zeros(size), 0.0
    for update in range(num_updates):
        target_D, weight = memory * target_D + rng.normal(size=size), memory * weight + 1
        scored_K = (np.arange(num_sources) - update * scored_batch) % num_sources < scored_batch
        tokens_K = 100.0 * scored_K
        alignment_K = tokens_K * ((always_KD + rng.normal(size=always_KD.shape)) @ target_D / weight)
        sums = [alignment_K.tolist(), tokens_K.tolist(), tokens_K.tolist()]
        rows.append(TrajectoryRow(update + 1, 0, [1 / num_sources] * num_sources, [], 0.0, 0.0, [], [], *sums))
    return Trajectory(rows)


@pytest.mark.parametrize("scored_batch", [40, 8])
@pytest.mark.parametrize("remembered", [0.0, 0.3, 3.0])
def test_without_a_signal_one_source_in_twenty_is_beyond_two_though_target_gradients_are_remembered(
    remembered: float, scored_batch: int
) -> None:
    rng, memory, beyond = np.random.default_rng(0), 0.8, []
    for num_updates in (60, 150) * 15:
        trajectory = without_signal(rng, num_updates=num_updates, remembered=remembered, scored_batch=scored_batch, memory=memory)
        found = certainty_of(
            trajectory,
            sources=[str(k) for k in range(40)],
            weights_K=np.full(40, 1 / 40),
            averaged_since=0,
            scored_batch=scored_batch,
            target_memory=memory,
        ).signal_to_noise
        beyond.append(np.mean(np.abs(list(found.values())) > 2))
    assert 0.01 <= np.mean(beyond) <= 0.11
    # Taken as independent, it would be one in five where all noise returns.
    naive = signal_to_noise(Evidence.of(trajectory, scored_batch=scored_batch, target_memory=0.0))
    assert remembered < 1 or scored_batch < 40 or np.mean(np.abs(naive) > 2) > 0.12


def test_sources_that_take_turns_are_held_against_each_other_over_whole_turns() -> None:
    """Of four sources two are scored at an update; the mixture's score is of all of them, and the last update is half a turn."""
    rows = []
    for update in range(5):
        here_K = np.array([1.0, 1, 0, 0] if update % 2 == 0 else [0.0, 0, 1, 1])
        sums = [(here_K * [8.0, 4, 2, 2]).tolist(), (2 * here_K).tolist(), here_K.tolist()]
        rows.append(TrajectoryRow(update + 1, 0, [0.25] * 4, [], 0.0, 0.0, [], [], *sums))
    evidence = Evidence.of(Trajectory(rows), scored_batch=2, target_memory=0.5)
    assert evidence.centred_UK.tolist() == [[4.0, 0.0, -2.0, -2.0]] * 2
    assert evidence.divisor_UK.tolist() == [[2.0] * 4] * 2 and evidence.span == 3.0
    assert Evidence.of(Trajectory(rows), scored_batch=4, target_memory=0.5, since=3).divisor_UK.tolist() == [
        [0.0, 0, 2, 2],
        [2.0, 2, 0, 0],
    ]


def test_too_little_evidence_is_no_signal() -> None:
    short = planted_evidence([5.0, -5.0], num_updates=6)
    assert signal_to_noise(short).tolist() == [0.0, 0.0] and not interchangeable_pairs(short).any()
    seen_twice = planted_evidence([5.0, 0.0, 0.0], num_updates=40)
    seen_twice.divisor_UK[2:, 0] = seen_twice.centred_UK[2:, 0] = seen_twice.loss_UK[2:, 0] = 0
    assert signal_to_noise(seen_twice)[0] == 0 and not interchangeable_pairs(seen_twice)[0].any()


def test_the_mixtures_own_noise_cancels() -> None:
    """A target batch that is noisy moves all sources alike."""
    rng = np.random.default_rng(0)
    rows = []
    for update in range(40):
        tokens = rng.integers(50, 150, 3).astype(float)
        score = np.array([1.2, 1.0, 0.8]) + 10 * rng.normal() + 0.05 * rng.normal(size=3)
        weights = [1 / 3] * 3
        rows.append(
            TrajectoryRow(
                update, update, weights, [0.0] * 3, 0.0, 0.0, [1.0], [0.0], list(score * tokens), list(tokens), list(tokens)
            )
        )
    certainty = certainty_of(
        Trajectory(rows), sources="abc", weights_K=np.full(3, 1 / 3), averaged_since=19, scored_batch=3, target_memory=0.0
    )
    found = certainty.signal_to_noise
    assert found["a"] > 5 and found["c"] < -5 and abs(found["b"]) < 5


def test_a_copy_is_interchangeable_and_noise_is_not() -> None:
    found = 0
    for seed in range(40):
        pairs = interchangeable_pairs(planted_evidence([1.0, 1.0, 0.0, 0.1], losses_K=[2.0, 2.0, 4.0, 3.0], seed=seed))
        assert np.array_equal(pairs, pairs.T) and not pairs.diagonal().any()
        assert not pairs[:, 2:].any()  # the last two score alike, but have different losses
        found += bool(pairs[0, 1])
    assert found >= 34  # a 5% test calls some copies different


def test_noisy_sources_are_not_called_interchangeable() -> None:
    """Nothing tells them apart, but nothing shows that they are equal either."""
    found = [interchangeable_pairs(planted_evidence([0.0] * 12, noise=5.0, losses_K=[3.0] * 12, seed=s)).sum() for s in range(20)]
    assert np.mean(found) < 1  # of 132


def test_an_outlier_does_not_make_the_rest_interchangeable() -> None:
    pairs = interchangeable_pairs(planted_evidence([0.0, 0.2, -20.0], noise=0.1, losses_K=[3.0, 3.0, 9.0]))
    assert not pairs.any()


def test_sources_that_differ_on_the_way_only_are_not_interchangeable() -> None:
    """At the best mixture all sources in it score alike; complementary ones differ before."""
    settled = planted_evidence([0.0, 0.0, -1.0], num_updates=60, losses_K=[3.0, 3.0, 5.0])
    early = planted_evidence([1.0, -0.5, -1.0], num_updates=30, losses_K=[3.0, 3.0, 5.0])
    parts = zip(
        (early.centred_UK, early.divisor_UK, early.loss_UK),
        (settled.centred_UK, settled.divisor_UK, settled.loss_UK),
        strict=True,
    )
    whole = Evidence(*(np.concatenate(pair) for pair in parts))
    assert interchangeable_pairs(settled)[0, 1] and not interchangeable_pairs(whole).any()


def test_pairs_of_many_sources_equal_those_found_one_by_one() -> None:
    scores = np.random.default_rng(0).integers(0, 4, 150).astype(float)
    evidence = planted_evidence(scores.tolist(), losses_K=scores.tolist())
    pairs = interchangeable_pairs(evidence)
    assert pairs.any() and not pairs[scores[:, None] != scores].any()
    block = evidence_block(evidence)
    score, influence = ratio_and_influence(evidence.centred_UK, evidence.divisor_UK)
    for a, b in np.argwhere(pairs)[:20]:
        error = ((block_means(influence[:, [a]] - influence[:, [b]], block=block) ** 2).sum()) ** 0.5
        assert abs(score[a] - score[b]) + 1.6 * error <= 0.5 * score.std()


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_groups_are_disjoint_and_every_pair_in_one_is_interchangeable(num_sources: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = np.triu(rng.random((num_sources, num_sources)) < 0.6, 1)
    pairs |= pairs.T
    groups = groups_of_pairs(pairs, rng.random(num_sources))
    members = [k for group in groups for k in group]
    assert len(members) == len(set(members)) and all(len(group) > 1 for group in groups)
    assert all(pairs[a, b] for group in groups for a in group for b in group if a != b)


def test_a_search_notes_the_planted_copy_and_only_that(planted_plan: Callable[..., SearchPlan]) -> None:
    plan = planted_plan(sources=("noise", "same", "copy", "other"), update_interval=1)
    mixture = search(plan, quiet=True).mixture
    certainty = mixture.certainty
    assert [set(group) for group in certainty.interchangeable] == [{"same", "copy"}]
    rows = pq.read_table(plan.folder.trajectory).to_pylist()
    whole = signal_to_noise(Evidence.of(Trajectory.from_state(rows), scored_batch=16, target_memory=plan.search.target_memory))
    assert max(whole[0], whole[3]) < -1 < 1 < min(whole[1], whole[2]) and set(certainty.signal_to_noise) == set(mixture.weights)
    assert all(low <= mixture.weights[name] <= high for name, (low, high) in certainty.interval.items())
