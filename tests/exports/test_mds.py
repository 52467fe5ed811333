"""MDS read by MosaicML streaming."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_readers import read_with

from fastmix_data.manifest.manifest import Manifest, save_manifest
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
    """With masks and example starts where a source has them, tokens of either width, and the bytes of MDSWriter."""
    manifest: Manifest = request.getfixturevalue(name)
    masked = name == "masked_manifest"
    if masked:
        manifest = save_manifest(dataclasses.replace(manifest, dtype="<u4", vocab_size=100_000))
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


def test_what_llm_foundry_does_not_read_is_said_and_shards_stay_within_their_size(
    masked_manifest: Manifest, tmp_path: Path
) -> None:
    """It reads `tokens` alone, so it learns padding, and what the masks leave out."""
    result = export(masked_manifest.path, to="mds", directory=tmp_path / "out", max_file_bytes=900)
    padded = sum(part.num_blocks * masked_manifest.block_tokens - part.num_labels for part in masked_manifest.parts)
    assert padded and result.remarks[0].startswith(f"{padded} labels beyond the last token of a run are padding")
    assert result.remarks[1].startswith("code: `loss_mask` and `starts` stand beside `tokens`; llm-foundry's")
    sizes = [path.stat().st_size for path in result.directory.rglob("*.mds")]
    assert len(sizes) > 9 and max(sizes) <= 900
