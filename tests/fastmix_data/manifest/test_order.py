from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows_without_files import BLOCK, rows_without_files

from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.order import ManifestOrder
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo

MakeCatalog = Callable[..., Catalog]
WEIGHTS = {"books": 0.5, "code": 0.3, "notes": 0.2}


@pytest.fixture
def manifest(make_catalog: MakeCatalog) -> Manifest:
    catalog = make_catalog({"books": [410, 333], "code": [2000], "notes": [100, 70, 90]})
    emit = EmitSection(token_budget=2600, max_epochs=4)
    return emit_manifest(catalog, Mixture(weights=WEIGHTS), emit=emit, directory=catalog.root / "manifest")


def _big_order(make_catalog: MakeCatalog, **kwargs: Any) -> tuple[Manifest, ManifestOrder]:
    catalog = make_catalog({"books": [30000], "code": [90000, 4321], "notes": [5000]}, shard_blocks=500)
    emit = EmitSection(token_budget=200_000, max_epochs=40)
    manifest = emit_manifest(catalog, Mixture(weights=WEIGHTS), emit=emit, directory=catalog.root / "manifest")
    return manifest, ManifestOrder(manifest, sequence_length=16, **kwargs)


@st.composite
def _phases(draw: st.DrawFn) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of sources, and two phases in which some of them have no share, some a tiny one and some nearly all."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 12)))]
    weights = st.lists(st.sampled_from([0, 1, 3, 40, 2000]), min_size=len(names), max_size=len(names)).filter(any)
    shares = [dict(zip(names, draw(weights), strict=True)) for _ in range(2)]
    return names, [{"tokens": "60%", "weights": shares[0]}, {"tokens": "40%", "weights": shares[1]}]


@given(_phases(), st.integers(40, 6000), st.integers(0, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_run_of_sequences_holds_the_mixture_of_its_phase_to_within_the_stated_bound(
    tmp_path: Path, phases: tuple[list[str], list[dict[str, Any]]], num_blocks: int, seed: int
) -> None:
    names, sections = phases
    rows = [row for name in names for row in rows_without_files([BLOCK * 3000], 3000, name)]
    catalog = Catalog(Path("/nowhere"), CatalogInfo(BLOCK, 100, 0, "0", sources=tuple(names)), rows)
    emit = EmitSection.model_validate({"token_budget": num_blocks * BLOCK, "max_epochs": 9, "seed": seed, "phases": sections})
    manifest = emit_manifest(catalog, None, emit=emit, directory=tmp_path, replace=True)
    order = ManifestOrder(manifest, sequence_length=BLOCK)
    source_N = order.locate(np.arange(order.num_sequences)).source_N
    for first, stop in pairwise(order.phase_start_F.tolist()):
        of_source_NK = source_N[first:stop, None] == np.arange(len(names))
        share_K = of_source_NK.sum(axis=0) / max(stop - first, 1)
        # How far the number of a source is from its share, after each sequence: two of them differ by what a run is off.
        off_NK = np.cumsum(of_source_NK - share_K, axis=0)
        widest_K = np.ptp(np.vstack([np.zeros(len(names)), off_NK]), axis=0)
        num_sources = np.count_nonzero(share_K)
        assert (widest_K <= 112 * share_K * (1 - share_K) + 3 + 3 * share_K * num_sources).all()


def test_draws_before_a_position_are_those_that_were_located(make_catalog: MakeCatalog) -> None:
    _, order = _big_order(make_catalog)
    source_N = order.locate(np.arange(order.num_sequences)).source_N
    for position in (0, 1, 55, 56, 57, 1000, order.num_sequences - 1, order.num_sequences):
        assert order.drawn_before(position).tolist() == np.bincount(source_N[:position], minlength=3).tolist()


def test_other_sources_do_not_change_the_order_of_a_source(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    def blocks_of_code(sources: dict[str, list[int]]) -> list[tuple[str, int]]:
        catalog = make_catalog(sources, root=tmp_path / "-".join(sources))
        emit = EmitSection(token_budget=1000 * len(sources), max_epochs=4)
        mixture = Mixture(weights=dict.fromkeys(sources, 1 / len(sources)))
        manifest = emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")
        located = ManifestOrder(manifest, sequence_length=16).locate(np.arange(1000 * len(sources) // 16))
        chosen_N = located.source_N == list(sources).index("code")
        return [
            (manifest.parts[part].path, block)
            for part, block in zip(located.part_N[chosen_N].tolist(), located.block_N[chosen_N].tolist(), strict=True)
        ]

    alone, among = blocks_of_code({"code": [800]}), blocks_of_code({"books": [410], "code": [800], "web": [900]})
    assert alone[:50] == among[:50]


def test_epochs_are_shuffled_differently_and_so_are_seeds(make_catalog: MakeCatalog) -> None:
    manifest, order = _big_order(make_catalog)
    first = order.locate(np.arange(2000))
    again = ManifestOrder(manifest, sequence_length=16).locate(np.arange(2000))
    other = ManifestOrder(manifest, sequence_length=16, seed=9).locate(np.arange(2000))
    assert np.array_equal(first.block_N, again.block_N)
    assert np.mean(first.block_N == other.block_N) < 0.05


@given(seed=st.integers(0, 5), start=st.floats(0, 1), step=st.integers(1, 700))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_any_position_is_found_without_those_before_it(manifest: Manifest, seed: int, start: float, step: int) -> None:
    order = ManifestOrder(manifest, sequence_length=4, seed=seed)
    everything = order.locate(np.arange(order.num_sequences))
    positions = np.arange(int(start * order.num_sequences), order.num_sequences, step)
    some = order.locate(positions)
    for name in ("source_N", "part_N", "block_N", "within_N", "num_labels_N"):
        assert np.array_equal(getattr(everything, name)[positions], getattr(some, name))
