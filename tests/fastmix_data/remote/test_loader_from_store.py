"""The production loader reads S3 as it reads a disk: in its order, with workers, resumed, and from shards of a run in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmix_data.loader import ManifestDataset, ManifestLoader, ShardStore
from fastmix_data.machine import Workers
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.remote import shard_store
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from pipelines.export.run import export
from tests.local_s3 import LocalS3


def same(found: Iterable[Any], expected: Iterable[Any]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return bool(pairs) and all(torch.equal(a[name], b[name]) for a, b in pairs for name in b)


@pytest.mark.parametrize("masked", [(), ("code",)], ids=["plain", "masked"])
def test_items_from_s3_are_those_of_the_files(
    make_catalog: Callable[..., Catalog], s3: LocalS3, tmp_path: Path, masked: tuple[str, ...]
) -> None:
    shard_store._opened.cache_clear()
    catalog = make_catalog({"books": [900, 331], "code": [700, 260]}, masked=masked)
    mixture, emit = Mixture(weights={"books": 0.6, "code": 0.4}), EmitSection(token_budget=1500)
    manifest = emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")
    export(manifest.directory, to="shards", directory=tmp_path / "out", max_file_bytes=12_000, workers=Workers(1))
    s3.upload(catalog.root / "shards", "corpora", f"{tmp_path.name}/blocks")
    s3.upload(tmp_path / "out" / "shards", "corpora", f"{tmp_path.name}/run")
    for path, name, length in ((manifest.directory, "blocks", 8), (tmp_path / "out", "run", None)):
        store = ShardStore(f"s3://corpora/{tmp_path.name}/{name}", str(tmp_path / "cache"), 1 << 22)
        options = {"sequence_length": length, "batch_size": 4, "keep_rest": True}
        for rank in range(2):
            local, remote = (ManifestDataset(path, rank=rank, world_size=2, **options, store=at) for at in (None, store))
            assert same(remote, local)
        loader = ManifestLoader(ManifestDataset(path, store=store, **options), num_workers=2)
        loader.load_state_dict(ManifestDataset(path, **options).state_after(3))
        assert same(loader, list(ManifestDataset(path, **options))[3:])
        s3.paths.clear()
        assert same(ManifestDataset(path, store=store, **options), ManifestDataset(path, **options)) and not s3.paths


def test_shards_in_the_order_of_a_run_are_fetched_from_front_to_back(
    make_catalog: Callable[..., Catalog], s3: LocalS3, tmp_path: Path
) -> None:
    shard_store._opened.cache_clear()
    catalog = make_catalog({"books": [300_000], "code": [200_000]}, block_tokens=4096, dtype="<u4", shard_blocks=40)
    mixture, emit = Mixture(weights={"books": 0.6, "code": 0.4}), EmitSection(token_budget=400_000)
    manifest = emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")
    export(manifest.directory, to="shards", directory=tmp_path / "out", max_file_bytes=900_000, workers=Workers(1))
    s3.upload(tmp_path / "out" / "shards", "corpora", tmp_path.name)
    store = ShardStore(f"s3://corpora/{tmp_path.name}", str(tmp_path / "cache"), 1 << 24)
    s3.bytes_sent = 0
    dataset = ManifestDataset(tmp_path / "out", batch_size=2, store=store, keep_rest=True)
    tokens = sum(item["tokens"].numel() for item in dataset)
    assert tokens * 4 <= s3.bytes_sent <= 1.1 * tokens * 4
    assert len(s3.paths) <= 2 * len(dataset.manifest.parts)
