from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmix_data.errors import InfeasibleBudgetError, InputError, MismatchError, RecipeError
from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.continuation import Continuation, continue_after
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog

MakeCatalog = Callable[..., Catalog]
SIZES = {"books": [410, 334], "code": [2000]}


@pytest.fixture
def catalog(make_catalog: MakeCatalog) -> Catalog:
    return make_catalog(SIZES)


@pytest.fixture
def manifest(catalog: Catalog) -> Manifest:
    return _emit(catalog, catalog.root / "manifest")


def _emit(catalog: Catalog, directory: Path, *, books: float = 0.5, after: Continuation | None = None, **emit: Any) -> Manifest:
    section = EmitSection.model_validate({"token_budget": 2600, **emit})
    rest = (1 - books) / (len(catalog.sources) - 1)
    mixture = Mixture(weights={name: books if name == "books" else rest for name in catalog.sources})
    return emit_manifest(catalog, mixture, emit=section, directory=directory, after=after)


def test_the_rest_of_a_run_has_the_rest_of_its_tokens_in_the_new_mixture(
    catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    rest = _emit(catalog, tmp_path / "rest", books=0.1, after=continue_after(manifest, 1003, sequence_length=8))
    assert rest.after is not None
    assert (rest.after.manifest, rest.after.tokens, rest.after.sequence_length) == (manifest.sha256, 1000, 8)
    books, code = rest.sources
    before = books.tokens_before + code.tokens_before
    assert 985 <= before <= 1000 and rest.token_budget == 2600 - before  # some sequences are the short ends of partitions
    assert abs(rest.num_tokens - rest.token_budget) <= 16 and abs(books.num_tokens - 0.1 * rest.token_budget) <= 16
    assert books.epochs == (books.tokens_before + books.num_tokens) / 744
    assert f"continues {manifest.sha256[:12]} after 125 sequences of 8 (1000 tokens, {before} of them" in rest.message
    again = _emit(catalog, tmp_path / "rest", books=0.1, after=continue_after(manifest, 1000, sequence_length=8))
    assert not again.did_work and load_manifest(tmp_path / "rest") == dataclasses.replace(rest, did_work=True)


def test_what_was_served_counts_for_the_caps(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    after = continue_after(manifest, 1200)
    rest = _emit(catalog, tmp_path / "rest", books=0.9, after=after, max_epochs={"books": 1.5, "code": 2})
    books = rest.sources[0]
    assert books.capped and 1.5 * 744 - 16 < books.tokens_before + books.num_tokens <= 1.5 * 744
    with pytest.raises(
        InfeasibleBudgetError, match=r"that were served; binding: .*tokens off emit.token_budget, or raise emit.max"
    ):
        _emit(catalog, tmp_path / "too-much", after=after, max_epochs=0.6)


def test_phases_go_on_where_the_run_stands(catalog: Catalog, tmp_path: Path) -> None:
    phases = [{"tokens": 1300, "weights": {"books": 1}}, {"tokens": 1300, "weights": {"code": 1}}]
    whole = _emit(catalog, tmp_path / "whole", phases=phases)
    first = _emit(catalog, tmp_path / "first", phases=phases, after=continue_after(whole, 800))
    assert [phase.weights["books"] for phase in first.phases] == [1.0, 0.0]
    assert first.phases[0].token_budget == 1300 - sum(source.tokens_before for source in first.sources)
    second = _emit(catalog, tmp_path / "second", phases=phases, after=continue_after(first, 1600))
    assert [phase.weights["books"] for phase in second.phases] == [0.0]


def test_the_order_is_fixed_to_the_length_and_the_seed_of_the_run(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    _emit(catalog, tmp_path / "rest", after=continue_after(manifest, 1000, sequence_length=8))
    dataset = ManifestDataset(tmp_path / "rest")
    assert next(iter(dataset))["tokens"].shape == (8,)
    with pytest.raises(
        MismatchError, match=r"sequence_length 16, but .* in sequences of 8; read it with sequence_length 8 and seed 0"
    ):
        ManifestDataset(tmp_path / "rest", sequence_length=16)
    with pytest.raises(MismatchError, match=r"seed 4, but the order .* is of seed 0"):
        ManifestDataset(tmp_path / "rest", seed=4)
    with pytest.raises(MismatchError, match=r"emit.seed: is 5, but .* seed 0; set emit.seed to 0"):
        _emit(catalog, tmp_path / "seed", after=continue_after(manifest, 1000), seed=5)


def test_places_outside_the_run_are_refused_in_one_line(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^--after 9000: is beyond the end of .*which holds the run from token 0 to 2608 in sequences"
    ) as error:
        continue_after(manifest, 9000)
    assert "\n" not in str(error.value)
    with pytest.raises(RecipeError, match="sequence_length 7 does not divide"):
        continue_after(manifest, 1000, sequence_length=7)
    rest = _emit(catalog, tmp_path / "rest", after=continue_after(manifest, 1600))
    with pytest.raises(InputError, match=r"^--after 800: lies before .* which holds the run from token 1600 to"):
        continue_after(rest, 800)
    with pytest.raises(RecipeError, match=r"--after 1600: emit.token_budget 900 was served by then .*; raise emit.token_budget"):
        _emit(catalog, tmp_path / "none", after=continue_after(manifest, 1600), token_budget=900)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"books": [411, 334], "code": [2000]},
            r"--after: source books: shards/books/train-000-\d+.tar.* changed or is gone since",
        ),
        ({"books": [410], "code": [2000]}, r"source books: shards/books/train-001-000.tar and \d more|source books: .* gone"),
        ({"code": [2000], "web": [2000]}, "has no source books, which the manifest has; keep its shards, and give it weight 0"),
    ],
)
def test_sources_may_only_grow(
    make_catalog: MakeCatalog, manifest: Manifest, tmp_path: Path, sources: dict[str, list[int]], message: str
) -> None:
    after = continue_after(manifest, 1600)
    changed = make_catalog(sources, root=tmp_path / "changed")
    section = EmitSection(token_budget=2600)
    mixture = Mixture(weights=dict.fromkeys(changed.sources, 1 / len(changed.sources)))
    with pytest.raises(MismatchError, match=message) as error:
        emit_manifest(changed, mixture, emit=section, directory=tmp_path / "rest", after=after)
    assert "\n" not in str(error.value) and not (tmp_path / "rest").exists()


def test_another_tokenizer_or_block_size_is_refused(make_catalog: MakeCatalog, manifest: Manifest, tmp_path: Path) -> None:
    other = make_catalog(SIZES, block_tokens=32, root=tmp_path / "other")
    with pytest.raises(
        MismatchError, match="has block_tokens 32, the manifest that is to be continued 16; continue it on the catalog"
    ):
        _emit(other, tmp_path / "rest", after=continue_after(manifest, 1600))
