from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.open_shard import max_open_shards
from fastmix_data.shards.sequences import SequenceReader


@pytest.fixture
def few_files() -> Iterator[int]:
    """So few open files as a process may have by default, next to those that are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 2 * len(list(Path("/proc/self/fd").iterdir())) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, before[1]))
    yield allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_corpus_may_have_more_shards_than_a_process_may_have_open_files(
    make_catalog: Callable[..., Catalog], few_files: int
) -> None:
    catalog = make_catalog({"a": [4 * 16 * few_files]}, shard_blocks=1)
    emit = EmitSection(token_budget=4 * 16 * few_files)
    path = emit_manifest(catalog, Mixture(weights={"a": 1.0}), emit=emit, directory=catalog.root / "manifest").path
    assert 1 <= max_open_shards() < few_files < len(catalog.shards("a", "train")) // 2
    items_N = torch.stack([item["tokens"] for item in ManifestDataset(path)])
    reader = SequenceReader(catalog, sources=["a"], split="train", sequence_length=16)
    read_N = reader.read(np.zeros(len(items_N), np.int64), np.arange(len(items_N))).tokens_BS[:, :-1]
    # The catalog's tokens count upwards, and repeat after more than a shard: the same rows, in another order.
    assert sorted(items_N.tolist()) == sorted(read_N.tolist())
