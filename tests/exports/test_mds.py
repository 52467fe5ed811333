"""MDS read by MosaicML streaming."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_readers import read_with

from fastmix_data.manifest.manifest import Manifest
from pipelines.export.run import export


def samples_of(manifest: Manifest, *, masked: bool) -> Counter[tuple[Any, ...]]:
    """Every block that a run reads, as often as it reads it: tokens, labels that are no padding, loss mask and starts."""
    counts: Counter[tuple[Any, ...]] = Counter()
    for part in manifest.parts:
        shard = manifest.open(part, root=manifest.root_path)
        labels_left = part.num_labels
        for block in range(part.block_start, part.block_stop):
            num_labels = min(manifest.block_tokens, labels_left)
            labels_left -= num_labels
            plain_mask = [int(position <= num_labels) for position in range(manifest.block_tokens + 1)]
            mask = plain_mask if shard.loss_mask_NT is None else shard.loss_mask_NT[block].tolist()
            starts = [0] * len(plain_mask) if shard.starts_NT is None else shard.starts_NT[block].tolist()
            extra = (tuple(mask), tuple(starts)) if masked else ()
            counts[(tuple(shard.tokens_NT[block].tolist()), num_labels, *extra)] += part.repeats
    return counts


def as_counter(samples: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """A reader's samples in the form of `samples_of`."""
    masks = [name for name in ("loss_mask", "starts") if name in samples[0]]
    return Counter(
        (tuple(sample["tokens"]), sample["num_labels"], *(tuple(sample[name]) for name in masks)) for sample in samples
    )


@pytest.mark.parametrize("name", ["plain_manifest", "masked_manifest"])
def test_an_epoch_of_streaming_holds_every_block_as_often_as_the_manifest(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With masks and example starts where a source has them, shards of 20 samples and less, and the bytes of MDSWriter."""
    manifest: Manifest = request.getfixturevalue(name)
    masked = name == "masked_manifest"
    result = export(manifest.path, to="mds", directory=tmp_path / "out", max_file_bytes=1500)
    read = read_with("mds", result.directory)
    expected = samples_of(manifest, masked=masked)
    assert as_counter(read["epoch"]) == expected
    assert read["as_written"] and all(read["as_written"].values())
    assert [len(sample["tokens"]) for sample in read["by_proportion"]] == [manifest.block_tokens + 1] * expected.total()
    # Tokens say which source they are of; by proportion, shares are those of the manifest to within a sample of each pool.
    by_source = Counter(np.array([sample["tokens"][0] for sample in read["by_proportion"]]) // 7919)
    wanted = Counter[int]()
    for (tokens, *_), count in expected.items():
        wanted[tokens[0] // 7919] += count
    assert all(abs(by_source[source] - count) <= 2 for source, count in wanted.items()), (by_source, wanted)
    assert any("llm-foundry" in remark for remark in result.remarks)


def test_equal_manifests_give_equal_shards_within_the_size_asked_for(plain_manifest: Manifest, tmp_path: Path) -> None:
    """In two folders, one of which is written in pieces of another size first."""
    first = export(plain_manifest.path, to="mds", directory=tmp_path / "a", max_file_bytes=900)
    export(plain_manifest.path, to="mds", directory=tmp_path / "b", max_file_bytes=2000)
    second = export(plain_manifest.path, to="mds", directory=tmp_path / "b", max_file_bytes=900, replace=True)
    paths = sorted(path.relative_to(first.directory) for path in first.directory.rglob("*.mds"))
    assert paths == sorted(path.relative_to(second.directory) for path in second.directory.rglob("*.mds"))
    assert len(paths) > 20
    for path in paths:
        content = (first.directory / path).read_bytes()
        assert content == (second.directory / path).read_bytes() and len(content) <= 900
