from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np

from fastmix_data.exports.part_tokens import read_part
from fastmix_data.exports.pools import pools_of
from fastmix_data.manifest.manifest import Manifest
from pipelines.export.run import export
from tests.exports.other_readers import read_with


def test_nemo_reads_the_tokens_of_a_manifest_in_its_shares(large_shards_manifest: Manifest, tmp_path: Path) -> None:
    manifest, block_tokens = large_shards_manifest, large_shards_manifest.block_tokens
    # A folder with a blank: its blend is JSON, which does not mind.
    exported = export(manifest.directory, to="nemo", directory=tmp_path / "for nemo")
    assert exported.files[0].name == "dataset.yaml"
    read = read_with("nemo", tmp_path / "for nemo", package="nemo_automodel")
    pools = {pool.name: pool for pool in pools_of(manifest)}
    once: Counter[int] = Counter()
    wanted: Counter[int] = Counter()
    for pool in pools.values():
        tokens = [read_part(manifest, part, root=manifest.root_path).tokens_T for part in pool.parts]
        once.update(np.concatenate(tokens).tolist())
        wanted.update(np.tile(np.concatenate(tokens), pool.repeats).tolist())
    assert Counter(chain.from_iterable(chain.from_iterable(file["sequences"]) for file in read["files"])) == once
    found = Counter(chain.from_iterable(read["train"]))
    assert found.total() == read["num_train_samples"] * block_tokens
    # Every file is read as often as its pool is repeated, but for a window or two.
    assert (found - wanted).total() <= len(read["files"]) * block_tokens
    assert (wanted - found).total() <= 2 * len(read["files"]) * block_tokens
    assert len(read["valid"]) == 3 * 2  # the whole windows of each source's 40 held-out tokens
