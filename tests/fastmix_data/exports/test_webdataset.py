from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset as wds

from fastmix_data.atomic_files import read_json
from fastmix_data.exports.format import Files
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.shards.catalog import Catalog
from pipelines.export.run import export

MakeCatalog = Callable[..., Catalog]
Sample = tuple[str, tuple[int, ...]]


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
    mixed_catalog: Catalog, mixed_manifest: Manifest, tmp_path: Path, files: Files
) -> None:
    export(mixed_manifest.directory, to="webdataset", directory=tmp_path / "wds", files=files)
    samples = _read(tmp_path / "wds")
    assert samples == _blocks_of_parts(mixed_catalog, mixed_manifest)
    assert max(samples.values()) >= 2
    urls = (tmp_path / "wds" / "shards.txt").read_text().splitlines()
    inside = [url for url in urls if str(tmp_path / "wds") in url]
    assert len(inside) == len(urls) if files != "reference" else 0 < len(inside) < len(urls)


def test_index_is_a_wids_shard_list_of_the_files(mixed_manifest: Manifest, tmp_path: Path) -> None:
    export(mixed_manifest.path, to="webdataset", directory=tmp_path / "wds")
    index = read_json(tmp_path / "wds" / "index.json")
    assert index["wids_version"] == 1  # its reader asks for url and nsamples; an md5sum would cost a read of all shards
    assert sum(shard["nsamples"] * shard["repeats"] for shard in index["shardlist"]) == sum(
        part.num_blocks * part.repeats for part in mixed_manifest.parts
    )
    for shard in index["shardlist"]:
        assert Path(shard["url"]).stat().st_size == shard["filesize"]
        assert sum(1 for _ in wds.WebDataset([shard["url"]], shardshuffle=False)) == shard["nsamples"]


def test_phases_follow_each_other_in_the_list_and_a_shard_of_two_phases_is_one_file(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    catalog = make_catalog({"books": [410, 333], "code": [800]})
    phases = [{"tokens": 900, "weights": {"books": 1}}, {"tokens": 1700, "weights": {"books": 1, "code": 1}}]
    emit = EmitSection.model_validate({"token_budget": 2600, "phases": phases})
    manifest = emit_manifest(catalog, None, emit=emit, directory=catalog.root / "manifest")
    exported = export(manifest.directory, to="webdataset", directory=tmp_path / "wds", files="copy")
    assert not any("phases" in remark for remark in exported.remarks)
    assert _read(tmp_path / "wds") == _blocks_of_parts(catalog, manifest)
    urls = (tmp_path / "wds" / "shards.txt").read_text().splitlines()
    num_first = sum(part.repeats for part in manifest.parts if manifest.pools[part.pool].phase == 0)
    assert all("books" in url for url in urls[:num_first]) and any("code" in url for url in urls[num_first:])
    shards = read_json(tmp_path / "wds" / "index.json")["shardlist"]
    assert len({shard["url"] for shard in shards}) == len(shards)
    assert sum(shard["nsamples"] * shard["repeats"] for shard in shards) == sum(p.num_blocks * p.repeats for p in manifest.parts)
    lost = export(manifest.directory, to="energon", directory=tmp_path / "energon").remarks
    assert any("does not tell phases apart: it reads the mixture of all 2 together" in remark for remark in lost)
