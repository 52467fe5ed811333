"""litdata's chunks read by litdata."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from other_readers import read_with

from fastmix_data.exports.part_tokens import read_part
from fastmix_data.exports.pools import pools_of
from fastmix_data.manifest.manifest import Manifest, save_manifest
from pipelines.export.run import export

Window = tuple[int, ...]


def windows_of(manifest: Manifest, size: int) -> Counter[Window]:
    """Windows of every pool's tokens, one part after the other, as often as the manifest reads them."""
    counts = Counter[Window]()
    for pool in pools_of(manifest):
        run_T = np.concatenate([read_part(manifest, part, root=manifest.root_path).tokens_T for part in pool.parts])
        for start in range(0, len(run_T) - size + 1, size):
            counts[tuple(run_T[start : start + size].tolist())] += pool.repeats
    return counts


def shares_of(windows: Counter[Window]) -> dict[int, float]:
    """Shares of windows by source, which the first token says."""
    counts = Counter[int]()
    for window, count in windows.items():
        counts[window[0] // 7919] += count
    return {source: counts[source] / windows.total() for source in range(3)}


def test_litdata_reads_every_window_as_often_as_the_manifest(plain_manifest: Manifest, tmp_path: Path) -> None:
    """Whatever the window, here or by workers: nothing is lost between chunks. By weight, shares hold. Chunks are litdata's own."""
    block, pools = plain_manifest.block_tokens, pools_of(plain_manifest)
    result = export(plain_manifest.path, to="litdata", directory=tmp_path / "out", max_file_bytes=4 * block * (block + 1))
    read = read_with("litdata", result.directory, block + 1, block, package="litdata")
    assert read["as_written"] == {pool.name: True for pool in pools}
    assert len(list((result.directory / "books").glob("*.bin"))) > 1
    assert Counter(map(tuple, read["loaded"][str(block + 1)])) == windows_of(plain_manifest, block + 1)
    for size in (block + 1, block):
        expected, weighted = windows_of(plain_manifest, size), Counter(map(tuple, read["weighted"][str(size)]))
        assert Counter(map(tuple, read["exact"][str(size)])) == expected
        assert 0 < weighted.total() < expected.total() and set(weighted) <= set(expected)
        for source, share in shares_of(expected).items():
            spread = (share * (1 - share) / weighted.total()) ** 0.5
            assert abs(shares_of(weighted)[source] - share) <= 4 * spread, (size, source)
    rest = sum(pool.repeats * (pool.num_tokens % (block + 1)) for pool in pools)
    assert result.remarks[0].startswith(f"{rest} tokens of a run, at the ends of pools,")
    assert result.remarks[1].startswith("single: shorter than a window of 17 tokens") and len(result.remarks) == 2


def test_uint32_chunks_are_read_and_masks_that_a_tokens_loader_does_not_know_are_said(
    masked_manifest: Manifest, tmp_path: Path
) -> None:
    """The source that has them is named; no chunk is larger than asked for."""
    manifest = save_manifest(dataclasses.replace(masked_manifest, dtype="<u4", vocab_size=100_000))
    result = export(manifest.path, to="litdata", directory=tmp_path / "out", max_file_bytes=700)
    assert result.remarks[0].startswith("code: a TokensLoader has no masks and no example boundaries")
    sizes = [path.stat().st_size for path in result.directory.rglob("*.bin")]
    assert len(sizes) > 10 and max(sizes) <= 700
    window = manifest.block_tokens + 1
    read = read_with("litdata", result.directory, window, package="litdata")
    assert all(read["as_written"].values())
    assert Counter(map(tuple, read["exact"][str(window)])) == windows_of(manifest, window)
