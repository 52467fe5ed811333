"""Shards in S3 read as those on a disk are, by few requests and few bytes, and what goes wrong is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmix_data.remote.shard_store import ShardStore
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import SequenceReader
from tests.local_s3 import LocalS3

MakeCatalog = Callable[..., Catalog]


def stored(catalog: Catalog, s3: LocalS3, tmp_path: Path, *, cache_bytes: int = 1 << 20, name: str = "cache") -> Catalog:
    prefix = tmp_path.name.replace("_", "-")
    s3.upload(catalog.root / "shards", "corpora", prefix)
    return catalog.read_from(ShardStore(f"s3://corpora/{prefix}", str(tmp_path / name), cache_bytes))


def test_sequences_from_s3_are_those_of_the_files_and_come_from_the_cache_the_second_time(
    make_catalog: MakeCatalog, s3: LocalS3, tmp_path: Path
) -> None:
    catalog = make_catalog({"plain": [500, 90], "examples": [300]}, masked=["examples"])
    remote = stored(catalog, s3, tmp_path)
    for length in (8, 16):
        readers = [
            SequenceReader(here, sources=catalog.sources, split="train", sequence_length=length, document_attention=True)
            for here in (catalog, remote)
        ]
        source = np.repeat([0, 1], readers[0].num_sequences_K)
        sequence = np.concatenate([np.arange(count) for count in readers[0].num_sequences_K])
        for _ in range(2):
            expected, found = (reader.read(source, sequence) for reader in readers)
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
            asked, s3.paths[:] = len(s3.paths), []
            assert asked > 0 or _ == 1
        assert asked == 0
