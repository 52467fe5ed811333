from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset as wds

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.exports.webdataset import Files, export_webdataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog

MakeCatalog = Callable[..., Catalog]
Sample = tuple[str, tuple[int, ...]]


@pytest.fixture
def catalog(make_catalog: MakeCatalog) -> Catalog:
    # `single` has one block, whose repeats may follow each other in the list.
    return make_catalog({"books": [410, 333], "code": [2000], "single": [10]}, masked=("code",))


@pytest.fixture
def manifest(catalog: Catalog) -> Manifest:
    mixture = Mixture(weights={"books": 0.6, "code": 0.38, "single": 0.02})
    emit = EmitSection(token_budget=2600, max_epochs=9)
    return emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")


def _blocks_of_parts(catalog: Catalog, manifest: Manifest) -> Counter[Sample]:
    rows = {row.path: row for row in catalog.rows}
    expected: Counter[Sample] = Counter()
    for part in manifest.parts:
        shard = catalog.open(rows[part.path])
        for block in range(part.block_start, part.block_stop):
            expected[shard.key(block), tuple(shard.tokens_NT[block].tolist())] += part.repeats
    return expected


def _read(directory: Path) -> Counter[Sample]:
    urls = (directory / "shards.txt").read_text().splitlines()
    return Counter(
        (sample["__key__"], tuple(sample["tokens.npy"].tolist())) for sample in wds.WebDataset(urls, shardshuffle=False).decode()
    )


@pytest.mark.parametrize("files", ["reference", "hardlink", "copy"])
def test_webdataset_reads_exactly_the_blocks_of_the_manifest(
    catalog: Catalog, manifest: Manifest, tmp_path: Path, files: Files
) -> None:
    export = export_webdataset(manifest.directory, tmp_path / "wds", files=files)
    samples = _read(tmp_path / "wds")
    assert samples == _blocks_of_parts(catalog, manifest)
    assert export.num_samples == samples.total() and max(samples.values()) >= 2
    inside = [url for url in (tmp_path / "wds" / "shards.txt").read_text().splitlines() if str(tmp_path / "wds") in url]
    assert len(inside) == export.num_urls if files != "reference" else 0 < len(inside) < export.num_urls


def test_index_is_a_wids_shard_list_of_the_files(manifest: Manifest, tmp_path: Path) -> None:
    export_webdataset(manifest.path, tmp_path / "wds")
    index = read_json(tmp_path / "wds" / "index.json")
    assert index["wids_version"] == 1  # its reader asks for url and nsamples; an md5sum would cost a read of all shards
    assert sum(shard["nsamples"] * shard["repeats"] for shard in index["shardlist"]) == index["fastmix"]["num_samples"]
    for shard in index["shardlist"]:
        assert Path(shard["url"]).stat().st_size == shard["filesize"]
        assert sum(1 for _ in wds.WebDataset([shard["url"]], shardshuffle=False)) == shard["nsamples"]


def test_exporting_again_does_nothing_and_another_manifest_is_refused(
    catalog: Catalog, manifest: Manifest, tmp_path: Path
) -> None:
    directory = tmp_path / "wds"
    assert export_webdataset(manifest.directory, directory).did_work
    again = export_webdataset(manifest.directory, directory)
    assert not again.did_work and "nothing to do" in again.message
    with pytest.raises(MismatchError, match="files is reference, now copy"):
        export_webdataset(manifest.directory, directory, files="copy")
    mixture = Mixture(weights={"books": 0.5, "code": 0.5, "single": 0.0})
    other = emit_manifest(catalog, mixture, emit=EmitSection(token_budget=900), directory=catalog.root / "other")
    with pytest.raises(MismatchError, match="another folder with --out, or delete this one"):
        export_webdataset(other.directory, directory)
    assert export_webdataset(other.directory, directory, replace=True).did_work
    assert _read(directory) == _blocks_of_parts(catalog, other)


def test_a_missing_shard_is_named_and_the_export_is_not_finished(catalog: Catalog, manifest: Manifest, tmp_path: Path) -> None:
    (catalog.root / manifest.parts[-1].path).unlink()
    with pytest.raises(CorruptArtefactError, match="the shard is missing"):
        export_webdataset(manifest.directory, tmp_path / "wds")
    assert not (tmp_path / "wds" / "index.json").exists()
