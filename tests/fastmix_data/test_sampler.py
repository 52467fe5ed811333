from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmix_data.errors import MismatchError
from fastmix_data.sampler import BatchPlan, ManySamplers, MixtureSampler, apportion, sequence_numbers


def make_sampler(num_sources: int, *, global_batch: int = 8, size: int = 50, seed: int = 0, window: int = 0) -> MixtureSampler:
    return MixtureSampler(
        np.full(num_sources, size),
        sources=[f"s{k}" for k in range(num_sources)],
        global_batch=global_batch,
        seed=seed,
        fingerprint="data",
        window=window,
    )


def random_weights(rng: np.random.Generator, num_sources: int, concentration: float) -> np.ndarray:
    weights = rng.dirichlet(np.full(num_sources, concentration)) + 1e-12
    return weights / weights.sum()


@settings(deadline=None, max_examples=60)
@given(
    num_sources=st.integers(1, 80),
    global_batch=st.integers(1, 64),
    concentration=st.sampled_from([0.01, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_realised_counts_stay_within_two_sequences_of_asked_for(
    num_sources: int, global_batch: int, concentration: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sampler = make_sampler(num_sources, global_batch=global_batch)
    asked = np.zeros(num_sources)
    for _ in range(60):
        weights = random_weights(rng, num_sources, concentration)
        plan = sampler.next(weights)
        asked += global_batch * weights
        assert len(plan.source_B) == global_batch
        assert np.abs(sampler.positions_K - asked).max() <= 2


@given(st.lists(st.floats(-0.9, 5), min_size=1, max_size=20), st.integers(0, 2**31))
def test_apportion_sums_exactly_and_never_goes_below_zero(credits: list[float], seed: int) -> None:
    num_draws = max(0, round(sum(credits)))
    counts = apportion(np.array(credits), num_draws=num_draws)
    assert counts.sum() == num_draws and counts.min() >= 0


@given(size=st.integers(1, 200), epoch=st.integers(0, 5), window=st.integers(0, 30), seed=st.integers(0, 1000))
def test_every_epoch_is_a_permutation_with_and_without_windows(size: int, epoch: int, window: int, seed: int) -> None:
    numbers = sequence_numbers(
        np.arange(epoch * size, (epoch + 1) * size),
        num_sequences_N=np.full(size, size),
        source_N=np.zeros(size, np.int64),
        seed=seed,
        window=window,
    )
    assert np.array_equal(np.sort(numbers), np.arange(size))
    if window:
        windows = numbers // window
        assert (np.diff(windows) != 0).sum() == len(set(windows.tolist())) - 1  # each window is visited once, in one go


@settings(deadline=None, max_examples=30)
@given(
    num_trainings=st.integers(1, 4),
    num_sources=st.integers(1, 30),
    global_batch=st.integers(1, 40),
    window=st.sampled_from([0, 7]),
    seed=st.integers(0, 2**31),
)
def test_many_samplers_at_once_draw_what_each_alone_draws(
    num_trainings: int, num_sources: int, global_batch: int, window: int, seed: int
) -> None:
    rng, seeds = np.random.default_rng(seed), [seed, seed + 1, seed, 5][:num_trainings]
    many = ManySamplers(np.full(num_sources, 50), seeds_N=seeds, global_batch=global_batch, window=window)
    alone = [make_sampler(num_sources, global_batch=global_batch, seed=each, window=window) for each in seeds]
    for _ in range(10):
        weights_NK = np.stack([random_weights(rng, num_sources, 0.1) for _ in seeds])
        found, expected = many.next(weights_NK), [one.next(weights_K) for one, weights_K in zip(alone, weights_NK, strict=True)]
        assert np.array_equal(found.source_B, np.concatenate([plan.source_B for plan in expected]))
        assert np.array_equal(found.sequence_B, np.concatenate([plan.sequence_B for plan in expected]))


def test_two_epochs_differ_in_order() -> None:
    first, second = (
        sequence_numbers(
            np.arange(e * 100, e * 100 + 100), num_sequences_N=np.full(100, 100), source_N=np.zeros(100, np.int64), seed=0
        )
        for e in (0, 1)
    )
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_sees_the_same_global_batches(num_ranks: int) -> None:
    rng = np.random.default_rng(0)
    reference, ranks = make_sampler(5), [make_sampler(5) for _ in range(num_ranks)]
    for _ in range(30):
        weights = random_weights(rng, 5, 1.0)
        whole = reference.next(weights)
        slices = [sampler.next(weights).slice(rank, num_ranks) for rank, sampler in enumerate(ranks)]
        assert np.array_equal(np.concatenate([part.source_B for part in slices]), whole.source_B)
        assert np.array_equal(np.concatenate([part.sequence_B for part in slices]), whole.sequence_B)
        sizes = [len(part.source_B) for part in slices]
        assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(stop=st.integers(0, 39), seed=st.integers(0, 1000))
def test_resume_at_any_step_continues_the_exact_order(stop: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trajectory = [random_weights(rng, 4, 0.3) for _ in range(40)]
    whole = [plan for sampler in [make_sampler(4, seed=seed)] for plan in map(sampler.next, trajectory)]
    before = make_sampler(4, seed=seed)
    for weights in trajectory[:stop]:
        before.next(weights)
    after = make_sampler(4, seed=seed)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for weights, expected in zip(trajectory[stop:], whole[stop:], strict=True):
        assert_same(after.next(weights), expected)


def assert_same(plan: BatchPlan, other: BatchPlan) -> None:
    assert np.array_equal(plan.source_B, other.source_B) and np.array_equal(plan.sequence_B, other.sequence_B)


def test_resuming_against_other_data_is_refused_and_says_what_differs() -> None:
    state = make_sampler(3).state_dict()
    with pytest.raises(MismatchError, match=r"num_sequences.*same data"):
        make_sampler(3, size=51).load_state_dict(state)
    with pytest.raises(MismatchError, match="seed"):
        make_sampler(3, seed=1).load_state_dict(state)


def test_state_is_small() -> None:
    assert len(json.dumps(make_sampler(8).state_dict())) < 1000


def test_a_batch_mixes_its_sources() -> None:
    plan = make_sampler(2, global_batch=64, size=500).next(np.array([0.5, 0.5]))
    assert 10 < (np.diff(plan.source_B) != 0).sum() < 54
