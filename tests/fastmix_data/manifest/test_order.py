from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.order import ManifestOrder
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog

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


def test_every_prefix_has_the_asked_for_mixture(make_catalog: MakeCatalog) -> None:
    _, order = _big_order(make_catalog)
    source_N = order.locate(np.arange(order.num_sequences)).source_N
    counts_NK = np.cumsum(source_N[:, None] == np.arange(3), axis=0)
    share_K = order.num_sequences_K / order.num_sequences
    error_NK = np.abs(counts_NK - share_K * np.arange(1, order.num_sequences + 1)[:, None])
    # Within a window of 56 the shuffle is random, with a standard deviation of at most 2 sequences halfway.
    assert error_NK.max() < 12 and error_NK.mean() < 2


def test_repeats_of_a_block_lie_in_different_epochs(make_catalog: MakeCatalog) -> None:
    manifest, order = _big_order(make_catalog)
    located = order.locate(np.arange(order.num_sequences))
    notes = manifest.sources[2]
    assert notes.epochs > 7
    paths = sorted({part.path for part in manifest.parts})
    shard_P = np.array([paths.index(part.path) for part in manifest.parts])
    block_N = (located.block_N + 10_000 * shard_P[located.part_N])[located.source_N == 2]
    unique = len(np.unique(block_N))  # an epoch; only the windows at its ends mix it with its neighbours
    per_window = int(56 * 0.2) + 2
    for epoch in range(7):
        inner = block_N[epoch * unique + per_window : (epoch + 1) * unique - per_window]
        assert len(np.unique(inner)) == len(inner)


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
