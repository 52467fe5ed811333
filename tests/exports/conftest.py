"""Manifests to export, with whole epochs and a rest of every source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog

# Run by the environments of other projects; here their packages are not at hand.
collect_ignore = ["readers"]


@pytest.fixture
def plain_manifest(make_catalog: Callable[..., Catalog]) -> Manifest:
    """Three sources without masks: `books` in two partitions and several epochs, `code` less than one, `single` of one block."""
    catalog = make_catalog({"books": [410, 333], "code": [2000], "single": [16]})
    mixture = Mixture(weights={"books": 0.7, "code": 0.27, "single": 0.03})
    emit = EmitSection(token_budget=2600, max_epochs=9)
    return emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")


@pytest.fixture
def masked_manifest(make_catalog: Callable[..., Catalog]) -> Manifest:
    """`code` holds examples of which only some tokens carry loss; `books` is plain."""
    catalog = make_catalog({"books": [410, 333], "code": [2000]}, masked=("code",))
    mixture = Mixture(weights={"books": 0.5, "code": 0.5})
    emit = EmitSection(token_budget=2600, max_epochs=9)
    return emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")


@pytest.fixture
def large_shards_manifest(make_catalog: Callable[..., Catalog]) -> Manifest:
    """As `plain_manifest`, with shards of some hundred blocks; the end of text is token 500, which stands at 499 of `books`."""
    catalog = make_catalog({"books": [9000, 707], "code": [12000], "single": [16]}, shard_blocks=300)
    catalog = Catalog(catalog.root, dataclasses.replace(catalog.info, eos_id=500), catalog.rows)
    catalog.save(catalog.root / "catalog.parquet")
    mixture = Mixture(weights={"books": 0.6, "code": 0.397, "single": 0.003})
    emit = EmitSection(token_budget=40_000, max_epochs=9)
    return emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")
