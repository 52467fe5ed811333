from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmix_data.exports.flat import flat_files
from fastmix_data.exports.part_tokens import PartTokens, read_part
from fastmix_data.manifest.manifest import Manifest
from pipelines.export.run import export


def test_of_a_part_that_files_share_each_reads_its_own_tokens_and_the_block_before(
    mixed_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(*arguments: Any, **options: Any) -> PartTokens:
        found = read_part(*arguments, **options)
        read.append(len(found.tokens_T))
        return found

    monkeypatch.setattr(flat_files, "read_part", counted)
    # Two windows of 17 tokens a file: cut within blocks of 16, of which a shard has five.
    export(mixed_manifest.directory, to="datatrove", directory=tmp_path / "many", max_file_bytes=70)
    num_tokens = sum(part.num_tokens for part in mixed_manifest.parts)
    assert num_tokens < sum(read) <= num_tokens + 16 * len(read)
    export(mixed_manifest.directory, to="datatrove", directory=tmp_path / "one")
    for pool in (tmp_path / "one").glob("[a-z]*/"):
        for ending, dtype in ((".ds", "<u2"), (".loss", "?")):
            files = sorted((tmp_path / "many" / pool.name).glob(f"*{ending}"))
            whole = [np.fromfile(path, dtype) for path in sorted(pool.glob(f"*{ending}"))]
            assert len(files) == len(whole) == 0 or len(files) > len(whole) == 1 or pool.name.startswith("single")
            if whole:
                np.testing.assert_array_equal(np.concatenate([np.fromfile(path, dtype) for path in files]), whole[0])
        # Documents are the same, but for the cuts.
        ends = np.fromfile(pool / "00000.ds.index", "<u8")
        of_files = [
            np.fromfile(path, "<u8") + 34 * n for n, path in enumerate(sorted((tmp_path / "many" / pool.name).glob("*.index")))
        ]
        assert set(ends) <= set(np.concatenate(of_files)) <= set(ends) | set(range(0, int(ends[-1]), 34))
