from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows_without_files import BLOCK, rows_without_files

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import CorruptArtefactError, InfeasibleBudgetError, InputError, MismatchError, RecipeError
from fastmix_data.manifest.allocation import token_caps
from fastmix_data.manifest.emit import check_emit, emit_manifest
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo

MakeCatalog = Callable[..., Catalog]


def _emit(catalog: Catalog, weights: dict[str, float], directory: Path, **emit: object) -> Manifest:
    section = EmitSection.model_validate({"max_epochs": 4, **emit})
    return emit_manifest(catalog, Mixture(weights=weights), emit=section, directory=directory)


@pytest.fixture
def catalog(make_catalog: MakeCatalog) -> Catalog:
    return make_catalog({"books": [410, 333], "code": [2000], "notes": [100, 70, 90]})


WEIGHTS = {"books": 0.5, "code": 0.3, "notes": 0.2}


def _no_files(sizes: dict[str, list[int]]) -> Catalog:
    rows = [row for name, partitions in sizes.items() for row in rows_without_files(partitions, 4, name)]
    return Catalog(Path("/nowhere"), CatalogInfo(BLOCK, 100, 0, "0", sources=tuple(sizes)), rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=3), min_size=1, max_size=6),
    st.lists(st.integers(1, 50), min_size=6, max_size=6),
    st.floats(0.02, 1.0),
    st.sampled_from([0.7, 1.0, 1.5, 2.3, 4.0]),
)
def test_the_total_is_within_one_block_of_the_budget_and_no_cap_is_exceeded(
    tmp_path: Path, sizes: list[list[int]], raw: list[int], fill: float, max_epochs: float
) -> None:
    catalog = _no_files({f"s{k}": partitions for k, partitions in enumerate(sizes)})
    weights = {name: weight / sum(raw[: len(sizes)]) for name, weight in zip(catalog.sources, raw, strict=False)}
    reachable = sum(token_caps(catalog.num_tokens_K(), max_epochs=max_epochs).tolist())
    emit = EmitSection(token_budget=max(int(reachable * fill) - 1, 1), max_epochs=max_epochs)
    directory = tmp_path / "manifest"
    try:
        manifest = emit_manifest(catalog, Mixture(weights=weights), emit=emit, directory=directory, replace=True)
    except InfeasibleBudgetError:
        assert emit.token_budget < BLOCK or emit.token_budget > reachable - BLOCK * len(sizes)  # what whole blocks cannot reach
        return
    assert abs(manifest.num_tokens - emit.token_budget) <= BLOCK
    assert manifest.num_tokens == sum(source.num_tokens for source in manifest.sources)
    for source in manifest.sources:
        assert source.num_tokens <= int(token_caps([source.unique_tokens], max_epochs=max_epochs)[0])
        of_source = [part for part in manifest.parts if part.source == source.name]
        assert sum(part.num_tokens * part.repeats for part in of_source) == source.num_tokens


def test_worked_example_shares_epochs_and_caps(catalog: Catalog, tmp_path: Path) -> None:
    manifest = _emit(catalog, WEIGHTS, tmp_path / "manifest", token_budget=2000, max_epochs={"notes": 1})
    books, code, notes = manifest.sources
    assert (notes.num_tokens, notes.capped, notes.epochs, notes.max_epochs) == (260, True, 1.0, 1.0)
    # 1740 tokens remain for books and code at 5 : 3.
    assert abs(books.num_tokens - 1087.5) <= BLOCK and not books.capped and books.unique_tokens == 743
    assert abs(code.num_tokens - 652.5) <= BLOCK
    assert abs(manifest.num_tokens - 2000) <= BLOCK
    assert [source.weight for source in manifest.sources] == [0.5, 0.3, 0.2]
    assert sum(source.share for source in manifest.sources) == pytest.approx(1)
    assert books.epochs == books.num_tokens / 743


def test_a_mixture_of_examples_ships_as_many_examples_of_each_source_as_it_says(tmp_path: Path) -> None:
    catalog = _no_files({"long": [64 * BLOCK], "short": [64 * BLOCK]})
    counts = {"long": 4 * 64, "short": 16 * 64}  # examples a source
    rows = [dataclasses.replace(row, num_documents=row.num_blocks * counts[row.source] // 64) for row in catalog.rows]
    catalog = Catalog(catalog.root, catalog.info, rows)
    weights, budget = {"long": 0.5, "short": 0.5}, EmitSection(token_budget=60 * BLOCK, max_epochs=1)
    manifest = emit_manifest(catalog, Mixture(weights=weights, unit="examples"), emit=budget, directory=tmp_path)
    shipped = {source.name: source.num_tokens * counts[source.name] / source.unique_tokens for source in manifest.sources}
    assert shipped == {"long": 48 * 4, "short": 12 * 16}


def test_only_training_shards_are_shipped(catalog: Catalog, tmp_path: Path) -> None:
    manifest = _emit(catalog, WEIGHTS, tmp_path / "manifest", token_budget=2000)
    train = {row.path: row.sha256 for row in catalog.rows if row.split == "train"}
    assert {part.path for part in manifest.parts} <= train.keys()
    assert all(part.sha256 == train[part.path] for part in manifest.parts)


def test_what_is_loaded_is_what_was_emitted(catalog: Catalog, tmp_path: Path) -> None:
    directory = catalog.root / "manifest"
    emitted = _emit(catalog, WEIGHTS, directory, token_budget=2000)
    for path in (directory, directory / "manifest.json"):
        loaded = load_manifest(path)
        assert loaded == emitted and loaded.root_path == catalog.root
        assert all((loaded.root_path / part.path).is_file() for part in loaded.parts)


def test_a_moved_workdir_keeps_a_working_manifest(catalog: Catalog, tmp_path: Path) -> None:
    _emit(catalog, WEIGHTS, catalog.root / "manifest", token_budget=2000)
    shutil.move(catalog.root, tmp_path / "elsewhere")
    loaded = load_manifest(tmp_path / "elsewhere" / "manifest")
    assert (loaded.root_path / loaded.parts[0].path).is_file()


def test_emitting_again_does_nothing_and_says_so(catalog: Catalog, tmp_path: Path) -> None:
    directory = tmp_path / "manifest"
    first = _emit(catalog, WEIGHTS, directory, token_budget=2000)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}
    again = _emit(catalog, WEIGHTS, directory, token_budget=2000)
    assert first.did_work and not again.did_work and "nothing to do" in again.message
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


def test_equal_inputs_give_equal_bytes_and_another_seed_other_ranges(catalog: Catalog, tmp_path: Path) -> None:
    manifests = [
        _emit(catalog, WEIGHTS, tmp_path / name, token_budget=1500, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()
    assert (tmp_path / "a" / "parts.parquet").read_bytes() == (tmp_path / "b" / "parts.parquet").read_bytes()
    assert manifests[0].parts != manifests[2].parts


@pytest.mark.parametrize(
    ("weights", "emit", "named"),
    [
        ({"books": 0.4, "code": 0.4, "notes": 0.2}, {"token_budget": 2000}, r"another mixture \(books 0.5, now 0.4, code 0.3, now 0.4\)"),
        (WEIGHTS, {"token_budget": 1900}, "emit.token_budget 2000, now 1900"),
        (WEIGHTS, {"token_budget": 2000, "seed": 5}, "emit.seed 0, now 5"),
        (WEIGHTS, {"token_budget": 2000, "max_epochs": 5}, "emit.max_epochs of books 4, now 5"),
    ],
)  # fmt: skip
def test_other_inputs_are_refused_by_name_and_replace_writes_anew(
    catalog: Catalog, tmp_path: Path, weights: dict[str, float], emit: dict[str, object], named: str
) -> None:
    directory = tmp_path / "manifest"
    _emit(catalog, WEIGHTS, directory, token_budget=2000)
    with pytest.raises(MismatchError, match=named) as error:
        _emit(catalog, weights, directory, **emit)
    assert "--replace" in str(error.value) and "\n" not in str(error.value)
    section = EmitSection.model_validate({"max_epochs": 4, **emit})
    replaced = emit_manifest(catalog, Mixture(weights=weights), emit=section, directory=directory, replace=True)
    assert replaced.did_work and load_manifest(directory) == replaced


def test_another_catalog_is_refused(catalog: Catalog, make_catalog: MakeCatalog, tmp_path: Path) -> None:
    _emit(catalog, WEIGHTS, tmp_path / "manifest", token_budget=2000)
    other = make_catalog({"books": [411, 333], "code": [2000], "notes": [100, 70, 90]}, root=tmp_path / "other")
    with pytest.raises(MismatchError, match="another catalog"):
        _emit(other, WEIGHTS, tmp_path / "manifest", token_budget=2000)


def test_a_mixture_of_other_sources_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no weight for notes"):
        _emit(catalog, {"books": 0.5, "code": 0.5}, tmp_path / "manifest", token_budget=2000)
    assert not (tmp_path / "manifest").exists()


def test_a_budget_beyond_the_caps_leaves_nothing_behind(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"lower emit.token_budget to 12012, or raise emit.max_epochs to 7"):
        _emit(catalog, WEIGHTS, tmp_path / "manifest", token_budget=20_000)
    assert not (tmp_path / "manifest").exists()
    check_emit(catalog, EmitSection(token_budget=12_012, max_epochs=4))
    with pytest.raises(InfeasibleBudgetError):
        check_emit(catalog, EmitSection(token_budget=12_013, max_epochs=4))


def test_a_budget_of_all_caps_with_broken_epochs_is_met_in_whole_blocks(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudgetError) as error:
        check_emit(catalog, EmitSection(token_budget=10**9, max_epochs=1.3))
    reachable = int(str(error.value).split("lower emit.token_budget to ")[1].split(",")[0])
    manifest = _emit(catalog, WEIGHTS, tmp_path / "manifest", token_budget=reachable, max_epochs=1.3)
    assert manifest.num_tokens == reachable and all(source.capped for source in manifest.sources)


def test_a_missing_altered_or_newer_manifest_is_explained(catalog: Catalog, tmp_path: Path) -> None:
    directory = tmp_path / "manifest"
    with pytest.raises(InputError, match="run `fastmix emit` first"):
        load_manifest(directory)
    _emit(catalog, WEIGHTS, directory, token_budget=2000)
    path = directory / "manifest.json"
    content = read_json(path)
    write_json(path, {**content, "token_budget": 7})
    with pytest.raises(CorruptArtefactError, match="altered"):
        load_manifest(directory)
    write_json(path, {**content, "schema_version": 99})
    with pytest.raises(CorruptArtefactError, match="schema version 99"):
        load_manifest(directory)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptArtefactError, match="not valid JSON"):
        load_manifest(directory)
    write_json(path, {"weights": {}})
    with pytest.raises(CorruptArtefactError, match="not a fastmix manifest"):
        load_manifest(directory)


def test_damaged_parts_are_found_and_written_again_by_emit(catalog: Catalog, tmp_path: Path) -> None:
    directory = tmp_path / "manifest"
    _emit(catalog, WEIGHTS, directory, token_budget=2000)
    parts = directory / "parts.parquet"
    whole = parts.read_bytes()
    parts.write_bytes(whole[:-9])
    with pytest.raises(CorruptArtefactError, match=r"parts.parquet: does not have the hash"):
        load_manifest(directory)
    assert _emit(catalog, WEIGHTS, directory, token_budget=2000).did_work
    assert parts.read_bytes() == whole


def test_parts_are_readable_without_fastmix(catalog: Catalog, tmp_path: Path) -> None:
    manifest = _emit(catalog, WEIGHTS, tmp_path / "manifest", token_budget=2000)
    table = pq.read_table(tmp_path / "manifest" / "parts.parquet")
    tokens_P = np.array(table["num_tokens"]) * np.array(table["repeats"])
    assert tokens_P.sum() == manifest.num_tokens == read_json(tmp_path / "manifest" / "manifest.json")["num_tokens"]
