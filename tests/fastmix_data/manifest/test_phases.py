from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows_without_files import BLOCK, rows_without_files

from fastmix_data.errors import InfeasibleBudgetError, MismatchError
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo

MakeCatalog = Callable[..., Catalog]
SEARCHED = Mixture(weights={"books": 0.5, "code": 0.5})


def _catalog(sizes: dict[str, list[int]]) -> Catalog:
    rows = [row for name, partitions in sizes.items() for row in rows_without_files(partitions, 4, name)]
    return Catalog(Path("/nowhere"), CatalogInfo(BLOCK, 100, 0, "0", sources=tuple(sizes)), rows)


def _emit(directory: Path, sizes: dict[str, list[int]], *, replace: bool = True, files: Any = None, **emit: Any) -> Manifest:
    section = EmitSection.model_validate(emit)
    return emit_manifest(_catalog(sizes), SEARCHED, emit=section, directory=directory, replace=replace, mixture_files=files)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(0, 9), min_size=4, max_size=4)), min_size=1, max_size=5),
    st.sampled_from([0.7, 1.5, 2.3, 40.0]),
)
def test_what_each_source_gives_in_each_phase_is_at_most_one_block_off_and_so_is_the_whole(
    tmp_path: Path, sizes: list[list[int]], phases: list[tuple[int, list[int]]], max_epochs: float
) -> None:
    named = {f"s{k}": partitions for k, partitions in enumerate(sizes)}
    sections = [
        {"tokens": tokens * 7, "weights": dict(zip(named, weights, strict=False))}
        for tokens, weights in phases
        if any(weights[: len(named)])
    ]
    budget = sum(section["tokens"] for section in sections)
    if not sections:
        return
    try:
        manifest = _emit(tmp_path, named, token_budget=budget, phases=sections, max_epochs=max_epochs)
    except InfeasibleBudgetError:
        return
    assert abs(manifest.num_tokens - budget) <= BLOCK
    for phase in manifest.phases:
        assert sum(phase.asked.values()) == phase.token_budget
        assert all(abs(phase.tokens[name] - phase.asked[name]) <= BLOCK for name in named)
    for source in manifest.sources:
        assert source.num_tokens <= max_epochs * source.unique_tokens + 1e-6


def test_phases_take_their_mixtures_from_weights_from_files_and_from_the_search(tmp_path: Path) -> None:
    phases = [{"tokens": "50%", "weights": {"code": 3}}, {"tokens": "25%", "mixture": "late.json"}, {"tokens": "25%"}]
    files = {"late.json": Mixture(weights={"books": 0.75, "code": 0.25})}
    manifest = _emit(tmp_path, {"books": [1600], "code": [1600]}, token_budget=3200, phases=phases, files=files)
    assert [dict(phase.weights) for phase in manifest.phases] == [
        {"books": 0.0, "code": 1.0},
        {"books": 0.75, "code": 0.25},
        {"books": 0.5, "code": 0.5},
    ]
    assert [phase.tokens["code"] for phase in manifest.phases] == [1600, 208, 400]  # 200 is nearest to 208 in whole blocks
    assert manifest.sources[1].weight == pytest.approx((1600 + 200 + 400) / 3200)
    assert "3 phases (1.60K, 800, 800)" in manifest.message


def test_caps_hold_over_all_phases_and_a_phase_that_they_leave_too_little_is_named(tmp_path: Path) -> None:
    sizes = {"books": [800], "code": [8000]}
    phases = [{"tokens": 1000, "weights": {"books": 1, "code": 1}}, {"tokens": 1000, "weights": {"books": 1, "code": 1}}]
    manifest = _emit(tmp_path, sizes, token_budget=2000, phases=phases, max_epochs=1)
    books = manifest.sources[0]
    assert (books.num_tokens, books.capped, books.epochs) == (800, True, 1.0)
    assert [phase.asked["books"] for phase in manifest.phases] == [500, 304]
    phases[1]["weights"] = {"books": 1}
    with pytest.raises(InfeasibleBudgetError) as error:
        _emit(tmp_path, sizes, token_budget=2000, phases=phases, max_epochs=1)
    message = str(error.value)
    assert "emit.phases.1.tokens 1000 (1.00K) is beyond the epoch caps, which allow 304" in message
    assert error.value.remedy == "take 696 tokens off emit.phases.1.tokens, or raise emit.max_epochs to 2 for all of them"


def test_other_phases_are_another_manifest(tmp_path: Path) -> None:
    sizes = {"books": [1600], "code": [1600]}
    phases = [{"tokens": "50%", "weights": {"code": 3}}, {"tokens": "50%"}]
    assert _emit(tmp_path, sizes, token_budget=1600, phases=phases).did_work
    assert not _emit(tmp_path, sizes, token_budget=1600, phases=phases, replace=False).did_work
    phases[0]["weights"] = {"books": 1}
    with pytest.raises(MismatchError, match="another mixture; another emit section; give --replace"):
        _emit(tmp_path, sizes, token_budget=1600, phases=phases, replace=False)
