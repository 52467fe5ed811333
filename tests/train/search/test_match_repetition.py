"""match_repetition: the proxy repeats a source as often as production would, by seeing a fixed part of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.errors import MismatchError
from fastmix_data.recipe.file import load_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.shards.sequences import SequenceReader, spread_numbers
from train.proxy.engine import process_group
from train.proxy.training import train_on_mixture
from train.search.search import search

STEP = 16 * 32


def with_budget(recipe: Path, token_budget: int) -> Path:
    content = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**content, "emit": {"token_budget": token_budget, "max_epochs": 50}}, sort_keys=False))
    return recipe


def open_part(recipe: Recipe) -> tuple[Catalog, SequenceReader, SequenceReader]:
    """The catalog, a reader of the part that is seen and one of everything."""
    catalog = load_catalog(recipe.paths.root / "catalog.parquet")
    options: dict[str, Any] = {"sources": catalog.sources, "split": "train", "sequence_length": recipe.search.sequence_length}
    return catalog, SequenceReader(catalog, **options, share_seen=recipe.share_seen), SequenceReader(catalog, **options)


def sampler_of(catalog: Catalog, reader: SequenceReader) -> MixtureSampler:
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


def test_a_reader_of_a_part_reads_the_same_sequences_as_one_of_everything(planted_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(with_budget(planted_recipe(match_repetition=True), 4 * 120 * STEP))
    catalog, part, whole = open_part(recipe)
    assert recipe.share_seen == 0.25
    assert part.num_sequences_K.tolist() == [round(n / 4) for n in whole.num_sequences_K.tolist()]
    rng = np.random.default_rng(0)
    source_B = rng.integers(0, len(catalog.sources), 50)
    sequence_B = rng.integers(0, part.num_sequences_K[source_B])
    everywhere_B = spread_numbers(
        sequence_B,
        num_seen_N=part.num_sequences_K[source_B],
        num_sequences_N=whole.num_sequences_K[source_B],
        source_N=source_B,
    )
    for found, expected in zip(part.read(source_B, sequence_B), whole.read(source_B, everywhere_B), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("times", [3, 7, 40])
def test_the_proxy_repeats_a_source_as_often_as_production_would(planted_recipe: Callable[..., Path], times: int) -> None:
    """Production reads p * budget tokens of a source's 20,000; the proxy the same share of its own budget, of the part it sees."""
    budget = times * 120 * STEP
    recipe = load_recipe(with_budget(planted_recipe(match_repetition=True), budget))
    catalog, part, _ = open_part(recipe)
    weights_K = np.array([0.1, 0.6, 0.3])
    sampler = sampler_of(catalog, part)
    seen: list[set[int]] = [set() for _ in catalog.sources]
    for _ in range(recipe.search.num_steps):
        plan = sampler.next(weights_K)
        for source, sequence in zip(plan.source_B.tolist(), plan.sequence_B.tolist(), strict=True):
            seen[source].add(sequence)
    production_epochs_K = weights_K * budget / catalog.num_tokens_K()
    proxy_epochs_K = sampler.positions_K / part.num_sequences_K
    one_sequence = 0.5 / part.num_sequences_K.min()  # the part is rounded to whole sequences
    assert np.allclose(proxy_epochs_K, production_epochs_K, rtol=one_sequence + 0.01, atol=0.01)
    assert [len(numbers) for numbers in seen] == np.minimum(part.num_sequences_K, sampler.positions_K).tolist()


def test_nothing_is_left_out_without_the_key_or_when_production_is_no_larger(planted_recipe: Callable[..., Path]) -> None:
    small = load_recipe(with_budget(planted_recipe(name="small", match_repetition=True), 1000))
    off = load_recipe(with_budget(planted_recipe(name="off"), 10**6))
    for recipe in (small, off):
        _, part, whole = open_part(recipe)
        assert recipe.share_seen == 1.0 and np.array_equal(part.num_sequences_K, whole.num_sequences_K)


def test_a_source_keeps_one_sequence_at_least(planted_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(with_budget(planted_recipe(match_repetition=True), 10**9))
    _, part, _ = open_part(recipe)
    assert part.num_sequences_K.tolist() == [1, 1, 1]
    assert part.read(np.array([0, 1, 2]), np.zeros(3, np.int64))[0].shape == (3, 33)


def test_sampler_state_of_another_part_is_refused(planted_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(with_budget(planted_recipe(match_repetition=True), 4 * 120 * STEP))
    catalog, part, whole = open_part(recipe)
    with pytest.raises(MismatchError, match="num_sequences was"):
        sampler_of(catalog, whole).load_state_dict(sampler_of(catalog, part).state_dict())


def test_confirming_a_mixture_sees_the_same_part_with_every_seed(
    planted_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(with_budget(planted_recipe(match_repetition=True, token_budget=30 * STEP), 40 * 30 * STEP))
    catalog, part, whole = open_part(recipe)
    read: set[tuple[int, bytes]] = set()

    def read_and_note(reader: SequenceReader, source_B: np.ndarray, sequence_B: np.ndarray) -> Any:
        batch = original(reader, source_B, sequence_B)
        read.update(zip(source_B.tolist(), (row.tobytes() for row in batch[0]), strict=True))
        return batch

    original = SequenceReader.read
    monkeypatch.setattr(SequenceReader, "read", read_and_note)
    with process_group(rank=0, world_size=1):
        for seed in (0, 1):
            train_on_mixture(recipe, catalog, np.full(3, 1 / 3), seed=seed)
    counts = [sum(source == k for source, _ in read) for k in range(3)]
    assert counts == part.num_sequences_K.tolist() and sum(counts) < whole.num_sequences_K.sum() / 30


def test_a_killed_search_goes_on_with_its_part_and_its_constraints(planted_recipe: Callable[..., Path]) -> None:
    options: dict[str, Any] = {
        "match_repetition": True,
        "constraints": {"floor": 0.1, "ceiling": {"same": 0.5}},
        "token_budget": 60 * STEP,
        "checkpoint_interval": 8,
    }
    paths = [with_budget(planted_recipe(name=name, **options), 20 * 60 * STEP) for name in ("whole", "killed")]
    pointer = paths[1].with_suffix("") / "search" / "checkpoints" / "latest.json"
    process = subprocess.Popen([sys.executable, "-m", "train.search", str(paths[1])], stderr=subprocess.DEVNULL)
    while process.poll() is None and not pointer.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = []
    for path in paths:
        mixture = search(load_recipe(path), quiet=True).mixture
        table = pq.read_table(path.with_suffix("") / "search" / "trajectory.parquet")
        found.append((np.array(table["weights"].to_pylist()), mixture.binding))
    assert np.allclose(found[0][0], found[1][0], atol=1e-5) and found[0][1] == found[1][1]
    with pytest.raises(MismatchError, match=r"emit\.token_budget"):
        search(load_recipe(paths[0], [f"emit.token_budget={10 * 60 * STEP}"]), quiet=True)
