"""litdata's chunks read by litdata."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from other_readers import read_with

from fastmix_data.exports.part_tokens import read_part
from fastmix_data.exports.pools import pools_of
from fastmix_data.manifest.manifest import Manifest
from pipelines.export.run import export

Window = tuple[int, ...]


def runs_of(manifest: Manifest) -> dict[str, list[int]]:
    """All tokens of every pool, one part after the other."""
    root = manifest.root_path
    return {
        pool.name: [int(token) for part in pool.parts for token in read_part(manifest, part, root=root).tokens_T]
        for pool in pools_of(manifest)
    }


def windows_of(run: list[int], size: int) -> list[Window]:
    return [tuple(run[start : start + size]) for start in range(0, len(run) - size + 1, size)]


def test_litdata_reads_every_window_as_often_as_the_manifest(plain_manifest: Manifest, tmp_path: Path) -> None:
    """Whatever the window, in this process or by workers; nothing is lost between chunks; and chunks are those of litdata's own writer."""
    block = plain_manifest.block_tokens
    result = export(plain_manifest.path, to="litdata", directory=tmp_path / "out", max_file_bytes=4 * block * (block + 1))
    read = read_with("litdata", result.directory, block + 1, block, package="litdata")
    runs, pools = runs_of(plain_manifest), pools_of(plain_manifest)
    assert read["as_written"] == {pool.name: True for pool in pools}
    assert len(list((result.directory / "books").glob("*.bin"))) > 1
    for size in (block + 1, block):
        expected = Counter[Window]()
        for pool in pools:
            for window in windows_of(runs[pool.name], size):
                expected[window] += pool.repeats
        assert Counter(map(tuple, read["exact"][str(size)])) == expected
        if str(size) in read["loaded"]:
            assert Counter(map(tuple, read["loaded"][str(size)])) == expected
        weighted = Counter(map(tuple, read["weighted"][str(size)]))
        assert 0 < weighted.total() < expected.total() and set(weighted) <= set(expected)
    assert not [remark for remark in result.remarks if "mask" in remark]


def test_what_a_tokens_loader_cannot_keep_is_said(
    plain_manifest: Manifest, masked_manifest: Manifest, tmp_path: Path
) -> None:
    """Masks of the source that has some, tokens that fill no window, and a pool shorter than one."""
    result = export(masked_manifest.path, to="litdata", directory=tmp_path / "masked")
    assert any(remark.startswith("code: a TokensLoader has no masks") for remark in result.remarks)
