"""Manifests of every kind under an independent audit of their figures, and what the loader serves under a count of every sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_manifest import Audit, Served, sequences_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmix_data.errors import InfeasibleBudgetError, RecipeError
from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.continuation import continue_after
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.order import ManifestOrder
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, load_catalog

MakeCatalog = Callable[..., Catalog]
# No partition ends with a token alone, which no sequence would hold.
SIZES = {"books": [410, 334], "code": [700], "notes": [100, 70, 90]}
GROWN = {**SIZES, "code": [700, 302], "web": [640]}
WEIGHTS = {"books": 0.5, "code": 0.3, "notes": 0.2}


def _emit(catalog: Catalog, directory: Path, *, weights: dict[str, float] = WEIGHTS, after: Any = None, **emit: Any) -> Manifest:
    section = EmitSection.model_validate({"max_epochs": 6, **emit})
    mixture = Mixture(weights={name: weights.get(name, 0.0) for name in catalog.sources})
    return emit_manifest(catalog, mixture, emit=section, directory=directory, after=after, replace=True)


def _phases(*weights: dict[str, float]) -> list[dict[str, Any]]:
    return [{"tokens": f"{100 / len(weights)}%", "weights": each} for each in weights]


def _serve(manifest: Manifest, served: Served, *, length: int, stop: int | None = None) -> Counter[str]:
    """Count what the loader's order reads, up to a number of sequences; returns tokens by source."""
    rows = {row.path: row for row in load_catalog(manifest.root_path / "catalog.parquet").rows}
    order = ManifestOrder(manifest, sequence_length=length)
    located = order.locate(np.arange(order.num_sequences if stop is None else stop))
    columns = (located.source_N, located.part_N, located.block_N, located.within_N)
    tokens: Counter[str] = Counter()
    for source, part, block, within in zip(*(column.tolist() for column in columns), strict=True):
        name, path = manifest.sources[source].name, manifest.parts[part].path
        served.add(name, (path, block, within))
        tokens[name] += min(length, rows[path].num_tokens - block * manifest.block_tokens - within * length)
    return tokens


@pytest.mark.parametrize(
    "emit",
    [
        {"token_budget": 2600},
        {"token_budget": 1000, "max_epochs": {"notes": 0.7}},
        {"token_budget": 3000, "max_epochs": {"notes": 1, "code": 2.5, "books": 9}},
        {"token_budget": 3000, "phases": _phases(WEIGHTS, {"code": 1, "notes": 1}, {"books": 3, "notes": 1})},
        {"token_budget": 2500, "max_epochs": {"notes": 1.3}, "phases": _phases({"notes": 1, "code": 4}, WEIGHTS)},
        {"token_budget": 1200, "phases": [{"tokens": 40, "weights": {"books": 1}}, {"tokens": 1160}]},
    ],
)
@pytest.mark.parametrize("masked", [(), ("notes",)])
def test_every_figure_and_every_sequence_of_a_manifest_are_as_an_independent_count_has_them(
    make_catalog: MakeCatalog, emit: dict[str, Any], masked: Sequence[str]
) -> None:
    catalog = make_catalog(SIZES, masked=masked)
    manifest = _emit(catalog, catalog.root / "manifest", **emit)
    section = EmitSection.model_validate({"max_epochs": 6, **emit}).model_dump()
    assert Audit(manifest.directory, emit=section).run() == []
    for length in (16, 4):
        _serve(load_manifest(manifest.directory), Served(sequences_of(catalog.root, length)), length=length)


def test_the_audit_finds_a_figure_that_is_off_by_one(make_catalog: MakeCatalog) -> None:
    catalog = make_catalog(SIZES)
    emitted = _emit(catalog, catalog.root / "manifest", token_budget=2600)
    audit = Audit(emitted.directory)
    audit.content["phases"][0]["tokens"]["books"] += 1
    audit.content["sources"][1]["unique_tokens"] -= 1
    audit.parts[0]["num_labels"] += 1
    assert len(audit.run()) >= 4


Place = tuple[float, dict[str, float], bool]


@st.composite
def _places(draw: st.DrawFn) -> list[Place]:
    """Where a run changes over, as shares of what is left, with the weights from there on and whether the catalog has grown by then."""
    weights = st.fixed_dictionaries({name: st.integers(0, 5) for name in ("books", "code", "notes")}).filter(
        lambda w: any(w.values())
    )
    places = draw(st.lists(st.tuples(st.floats(0, 0.95), weights, st.booleans()), min_size=1, max_size=3))
    return [(share, {name: w / sum(found.values()) for name, w in found.items()}, grows) for share, found, grows in places]


@given(_places(), st.sampled_from([16, 8, 4]), st.integers(600, 4000), st.booleans(), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
def test_a_run_that_changes_over_any_number_of_times_serves_nothing_again_before_its_sources_others(
    make_catalog: MakeCatalog, tmp_path: Path, places: list[Place], length: int, budget: int, masked: bool, phased: bool
) -> None:
    catalog = make_catalog(SIZES, masked=("notes",) if masked else ())
    served = Served(sequences_of(catalog.root, length))
    emit: dict[str, Any] = {"token_budget": budget, "max_epochs": 40}
    if phased:
        emit["phases"] = _phases({"books": 1}, WEIGHTS)
    manifest = _emit(catalog, tmp_path / "0", **emit)
    totals: Counter[str] = Counter()
    start, has_grown = 0, False
    for number, (share, weights, grows) in enumerate(places, 1):
        order = ManifestOrder(manifest, sequence_length=length)
        stop = int(share * order.num_sequences)
        after = continue_after(load_manifest(manifest.directory), (start + stop) * length, sequence_length=length)
        if grows and not has_grown:
            catalog, has_grown = make_catalog(GROWN, masked=("notes",) if masked else ()), True
        named = {**weights, "web": 0.25} if has_grown else weights
        shares = {name: weight / sum(named.values()) for name, weight in named.items()}
        totals += _serve(manifest, served, length=length, stop=stop)
        start += stop
        try:
            manifest = _emit(catalog, tmp_path / str(number), weights=shares, after=after, token_budget=budget, max_epochs=40)
        except (RecipeError, InfeasibleBudgetError) as error:
            assert "budget" in str(error) and budget - totals.total() < 16  # nothing of it is left, or less than half a block
            return
        assert manifest.after is not None and manifest.after.num_sequences == start
        served.grow(sequences_of(catalog.root, length))
        assert Audit(manifest.directory, served_before=totals).run() == []
        assert abs(totals.total() + manifest.num_tokens - budget) <= 16
    _serve(manifest, served, length=length)


def test_the_loader_itself_reads_a_continued_run_without_a_token_twice(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    """By the tokens themselves, which tell every position: one epoch of everything in three manifests is each sequence once."""
    catalog = make_catalog(SIZES, masked=("notes",))
    total = int(catalog.num_tokens_K().sum())
    by_size: dict[str, Any] = {"weights": {name: sum(sizes) / total for name, sizes in SIZES.items()}, "max_epochs": 1}
    first = _emit(catalog, tmp_path / "a", token_budget=total, **by_size)
    seen: list[tuple[int, ...]] = []
    manifest = first
    for number, stop in enumerate((31, 53)):
        dataset = ManifestDataset(manifest.directory, sequence_length=8)
        start = manifest.after.num_sequences if manifest.after is not None else 0
        rows = iter(dataset)
        seen += [(int(item["source"]), *item["tokens"].tolist()) for item, _ in zip(rows, range(stop - start), strict=False)]
        after = continue_after(manifest, stop * 8, sequence_length=8)
        manifest = _emit(catalog, tmp_path / str(number), token_budget=total, after=after, **by_size)
    seen += [(int(item["source"]), *item["tokens"].tolist()) for item in ManifestDataset(manifest.directory)]
    whole = [(int(item["source"]), *item["tokens"].tolist()) for item in ManifestDataset(first.directory, sequence_length=8)]
    assert sorted(seen) == sorted(whole) and len(set(whole)) == len(whole)
