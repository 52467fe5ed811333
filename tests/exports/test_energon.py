from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastmix_data.atomic_files import read_json
from fastmix_data.exports.format import Files
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.shards.catalog import load_catalog
from pipelines.export.run import export
from tests.exports.other_readers import read_with

Block = tuple[str, str, tuple[int, ...], tuple[int, ...] | None]
NUM_BLENDED = 1600


def blocks_of(manifest: Manifest) -> Counter[Block]:
    found: Counter[Block] = Counter()
    for part in manifest.parts:
        shard = manifest.open(part, root=manifest.root_path)
        mask = shard.loss_mask_NT
        for block in range(part.block_start, part.block_stop):
            tokens = tuple(shard.tokens_NT[block].tolist())
            found[shard.key(block), part.source, tokens, None if mask is None else tuple(mask[block].tolist())] += part.repeats
    return found


def as_blocks(samples: list[Any]) -> Counter[Block]:
    return Counter((key, source, tuple(tokens), None if mask is None else tuple(mask)) for key, source, tokens, mask in samples)


@pytest.mark.parametrize(("kind", "files", "num_workers"), [("plain", "reference", 0), ("masked", "copy", 2)])
def test_energon_reads_every_block_as_often_as_the_manifest_says(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, files: Files, num_workers: int
) -> None:
    manifest: Manifest = request.getfixturevalue(f"{kind}_manifest")
    export(manifest.directory, to="energon", directory=tmp_path / "out", files=files)
    read = read_with("energon", tmp_path / "out", num_workers, NUM_BLENDED, package="energon")
    expected = blocks_of(manifest)
    assert max(expected.values()) > 1
    assert as_blocks(read["epoch"]) == expected
    # The blend by weights draws: it has the shares, and no exact epochs.
    drawn = Counter(source for _, source, _, _ in read["shares"])
    total = Counter(source for _, source, _, _ in expected.elements())
    assert drawn.total() == NUM_BLENDED
    for source, count in total.items():
        share = count / total.total()
        assert abs(drawn[source] / NUM_BLENDED - share) < 5 * (share * (1 - share) / NUM_BLENDED) ** 0.5
    catalog = load_catalog(manifest.root_path / "catalog.parquet")
    held_out = [(row, catalog.open(row)) for row in catalog.rows if row.split == "valid"]
    assert Counter(key for key, *_ in read["val"]) == Counter(
        shard.key(n) for row, shard in held_out for n in range(row.num_blocks)
    )
    # What Energon itself makes of the same tars.
    assert {folder["folder"] for folder in read["prepared"]} >= {"books", "books.rest", "code"}
    assert [folder for folder in read["prepared"] if folder["differ"]] == []


def test_labels_that_are_padding_are_named_by_sample(plain_manifest: Manifest, tmp_path: Path) -> None:
    exported = export(plain_manifest.directory, to="energon", directory=tmp_path / "out")
    short = read_json(tmp_path / "out" / "short_samples.json")
    block_tokens = plain_manifest.block_tokens
    for part in plain_manifest.parts:
        key = plain_manifest.open(part, root=plain_manifest.root_path).key(part.block_stop - 1)
        assert short.get(key, block_tokens) == part.num_labels - (part.num_blocks - 1) * block_tokens
    padding = sum(block_tokens - count for count in short.values())
    assert f"{padding} labels beyond the last token of a run are padding" in " ".join(exported.remarks)
