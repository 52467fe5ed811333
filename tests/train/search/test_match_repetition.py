"""match_repetition: the proxy repeats a source as often as production would, by seeing a fixed part of it.

That a killed search goes on with its part is in `test_search.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.errors import MismatchError
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.sequences import SequenceReader, spread_numbers
from train.proxy.engine import process_group
from train.proxy.training import ProxyPlan, train_on_mixture
from train.search.plan import SearchPlan

MakePlan = Callable[..., SearchPlan]
STEP = 16 * 32


@pytest.fixture
def matched(planted_plan: MakePlan) -> Callable[..., ProxyPlan]:
    """A proxy whose production run has so many tokens."""

    def make(production_tokens: int, **settings: Any) -> ProxyPlan:
        settings = {"match_repetition": True, **settings}
        return planted_plan(emit={"token_budget": production_tokens, "max_epochs": 10**6}, **settings).proxy

    return make


def reader_of_everything(proxy: ProxyPlan) -> SequenceReader:
    sources = proxy.catalog.sources
    return SequenceReader(proxy.catalog, sources=sources, split="train", sequence_length=proxy.training.sequence_length)


def sampler_of(proxy: ProxyPlan, reader: SequenceReader) -> MixtureSampler:
    catalog = proxy.catalog
    return MixtureSampler(
        reader.num_sequences_K, sources=catalog.sources, global_batch=16, seed=0, fingerprint=catalog.fingerprint
    )


@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 9))
def test_a_part_is_distinct_in_order_and_spread_evenly(num_seen: int, unseen: int, source: int) -> None:
    total, numbers = num_seen + unseen, np.arange(num_seen)
    sizes = {"num_seen_N": np.array(num_seen), "num_sequences_N": np.array(total)}
    chosen = spread_numbers(numbers, **sizes, source_N=np.array(source))
    assert chosen[0] >= 0 and chosen[-1] < total and (np.diff(chosen) > 0).all()
    assert (numbers * total // num_seen - 1 <= chosen).all() and (chosen <= (numbers + 1) * total // num_seen).all()
    reverse = spread_numbers(numbers[::-1].copy(), **sizes, source_N=np.array(source))
    assert np.array_equal(reverse[::-1], chosen)


def test_parts_are_pseudo_random_and_differ_between_sources() -> None:
    sizes = {"num_seen_N": np.array(2000), "num_sequences_N": np.array(20_000)}
    offsets = [spread_numbers(np.arange(2000), **sizes, source_N=np.array(k)) - 10 * np.arange(2000) for k in (0, 1)]
    counts = np.bincount(offsets[0], minlength=10)
    assert len(counts) == 10 and ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared, 9 degrees of freedom, 1 in 1,000
    assert 100 < (offsets[0] == offsets[1]).sum() < 300


def test_a_reader_of_a_part_reads_the_same_sequences_as_one_of_everything(matched: Callable[..., ProxyPlan]) -> None:
    proxy = matched(4 * 120 * STEP)
    part, whole = proxy.training_data(), reader_of_everything(proxy)
    assert proxy.share_seen == 0.25
    assert part.num_sequences_K.tolist() == [round(n / 4) for n in whole.num_sequences_K.tolist()]
    rng = np.random.default_rng(0)
    source_B = rng.integers(0, 3, 50)
    sequence_B = rng.integers(0, part.num_sequences_K[source_B])
    everywhere_B = spread_numbers(
        sequence_B,
        num_seen_N=part.num_sequences_K[source_B],
        num_sequences_N=whole.num_sequences_K[source_B],
        source_N=source_B,
    )
    for found, expected in zip(part.read(source_B, sequence_B), whole.read(source_B, everywhere_B), strict=True):
        assert np.array_equal(found, expected)
    with pytest.raises(MismatchError, match="num_sequences was"):  # the state of a sampler of another part
        sampler_of(proxy, whole).load_state_dict(sampler_of(proxy, part).state_dict())


@pytest.mark.parametrize("times", [3, 7, 40])
def test_the_proxy_repeats_a_source_as_often_as_production_would(matched: Callable[..., ProxyPlan], times: int) -> None:
    """Production reads p * budget tokens of a source's 20,000; the proxy the same share of its own budget, of the part it sees."""
    budget = times * 120 * STEP
    proxy = matched(budget)
    part, weights_K = proxy.training_data(), np.array([0.1, 0.6, 0.3])
    sampler = sampler_of(proxy, part)
    seen: list[set[int]] = [set() for _ in weights_K]
    for _ in range(proxy.training.num_steps):
        plan = sampler.next(weights_K)
        for source, sequence in zip(plan.source_B.tolist(), plan.sequence_B.tolist(), strict=True):
            seen[source].add(sequence)
    production_epochs_K = weights_K * budget / proxy.catalog.num_tokens_K()
    proxy_epochs_K = sampler.positions_K / part.num_sequences_K
    one_sequence = 0.5 / part.num_sequences_K.min()  # the part is rounded to whole sequences
    assert np.allclose(proxy_epochs_K, production_epochs_K, rtol=one_sequence + 0.01, atol=0.01)
    assert [len(numbers) for numbers in seen] == np.minimum(part.num_sequences_K, sampler.positions_K).tolist()


def test_nothing_is_left_out_without_the_key_or_when_production_is_no_larger(matched: Callable[..., ProxyPlan]) -> None:
    for proxy in (matched(1000), matched(10**6, match_repetition=False)):
        assert proxy.share_seen == 1.0
        assert np.array_equal(proxy.training_data().num_sequences_K, reader_of_everything(proxy).num_sequences_K)


def test_a_source_keeps_one_sequence_at_least(matched: Callable[..., ProxyPlan]) -> None:
    part = matched(10**9).training_data()
    assert part.num_sequences_K.tolist() == [1, 1, 1]
    assert part.read(np.array([0, 1, 2]), np.zeros(3, np.int64))[0].shape == (3, 33)


def test_confirming_a_mixture_sees_the_same_part_with_every_seed(
    matched: Callable[..., ProxyPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = matched(40 * 30 * STEP, token_budget=30 * STEP)
    part, whole = proxy.training_data(), reader_of_everything(proxy)
    read: set[tuple[int, bytes]] = set()

    def read_and_note(reader: SequenceReader, source_B: np.ndarray, sequence_B: np.ndarray) -> Any:
        batch = original(reader, source_B, sequence_B)
        read.update(zip(source_B.tolist(), (row.tobytes() for row in batch[0]), strict=True))
        return batch

    original = SequenceReader.read
    monkeypatch.setattr(SequenceReader, "read", read_and_note)
    with process_group(rank=0, world_size=1):
        for seed in (0, 1):
            train_on_mixture(proxy, np.full(3, 1 / 3), seed=seed).engine.close()
    counts = [sum(source == k for source, _ in read) for k in range(3)]
    assert counts == part.num_sequences_K.tolist() and sum(counts) < whole.num_sequences_K.sum() / 30
