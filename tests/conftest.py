"""What all tests share; small corpora with known tokens, written straight as shards, for what comes after preprocessing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.examples import is_padding
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, write_shard

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is imported: tests and their ranks share the cores

settings.register_profile("fastmix", deadline=None)  # times of tests say how busy the machine is
settings.load_profile("fastmix")

# They are no modules with doctests, and all have one name, of which pytest can collect but one.
collect_ignore_glob = ["*conftest.py"]

MakeCatalog = Callable[..., Catalog]
WINDOW = 4


def _starts(position_T: np.ndarray, num_tokens: int) -> np.ndarray:
    """Examples of a partition in windows of four tokens: one of four, or two of two, or one of two and padding."""
    starts = (position_T % WINDOW == 0).astype(np.uint8)
    starts[position_T % 12 == 6] = 1
    starts[(position_T % 20 == 18) | (position_T == num_tokens)] = 2
    return starts


def _write_partition(
    root: Path, source: str, *, split: str, partition: int, num_tokens: int, layout: ShardLayout, shard_blocks: int, base: int
) -> list[ShardRow]:
    """One partition's shards: its tokens count upwards, so that every position is recognisable; the end is padded with 0."""
    num_blocks = -(-num_tokens // layout.block_tokens)
    tokens = np.zeros(num_blocks * layout.block_tokens + 1, layout.dtype)
    # Of 4 bytes, they need more than 2.
    tokens[:num_tokens] = (base + np.arange(num_tokens)) % 60000 + 1 + (1 << 16 if layout.dtype.itemsize == 4 else 0)
    rows = []
    for number, first in enumerate(range(0, num_blocks, shard_blocks)):
        count = min(shard_blocks, num_blocks - first)
        start = first * layout.block_tokens
        chunk = tokens[start : start + count * layout.block_tokens + 1]
        starts = _starts(start + np.arange(len(chunk)), num_tokens) if layout.has_mask else None
        mask = None if starts is None else ((chunk % 2 == 1) & (starts == 0) & ~is_padding(starts)).astype(np.uint8)
        buffer = encode_shard(
            chunk,
            layout=layout,
            key_prefix=f"{source}-{split}-{partition}-{number}-",
            num_blocks=count,
            loss_mask=mask,
            starts=starts,
        )
        path = f"shards/{source}/{split}-{partition:03d}-{number:03d}.tar"
        written = write_shard(root / path, buffer, layout=layout)
        here = min(count * layout.block_tokens, num_tokens - start)
        labels = min(count * layout.block_tokens, num_tokens - 1 - start)
        loss = labels if mask is None else int(mask[1 : labels + 1].sum())
        rows.append(
            ShardRow(
                source,
                split,
                path,
                count,
                here,
                labels,
                loss,
                1,
                layout.dtype.str,
                layout.has_mask,
                written.num_bytes,
                written.sha256,
                0 if starts is None else int(is_padding(starts[:here]).sum()),
            )
        )
    return rows


@pytest.fixture
def make_catalog(tmp_path: Path) -> MakeCatalog:
    """Write a catalog: `sources` maps a name to the tokens of its partitions."""

    def make(
        sources: Mapping[str, Sequence[int]],
        *,
        block_tokens: int = 16,
        shard_blocks: int = 5,
        masked: Sequence[str] = (),
        root: Path = tmp_path / "run",
        valid_tokens: int = 40,
        dtype: str = "<u2",
    ) -> Catalog:
        rows: list[ShardRow] = []
        for index, (source, partitions) in enumerate(sources.items()):
            layout = ShardLayout(block_tokens, np.dtype(dtype), source in masked)
            for partition, num_tokens in enumerate(partitions):
                rows += _write_partition(
                    root, source, split="train", partition=partition, num_tokens=num_tokens, layout=layout, shard_blocks=shard_blocks,
                    base=7919 * index + 1013 * partition,
                )  # fmt: skip
            rows += _write_partition(
                root,
                source,
                split="valid",
                partition=0,
                num_tokens=valid_tokens,
                layout=layout,
                shard_blocks=shard_blocks,
                base=index,
            )
        catalog = Catalog(
            root,
            CatalogInfo(
                block_tokens,
                65536 if dtype == "<u2" else 200_000,
                0,
                "0" * 64,
                sources=tuple(sources),
                example_tokens=WINDOW if masked else None,
            ),
            rows,
        )
        catalog.save(root / "catalog.parquet")
        return catalog

    return make


@pytest.fixture
def mixed_catalog(make_catalog: MakeCatalog) -> Catalog:
    """A plain source, one with masks, and one of a single block, whose repeats may follow each other in a list of shards."""
    return make_catalog({"books": [410, 333], "code": [2000], "single": [10]}, masked=("code",))


@pytest.fixture
def mixed_manifest(mixed_catalog: Catalog) -> Manifest:
    """Whole epochs and a rest of each."""
    mixture = Mixture(weights={"books": 0.6, "code": 0.38, "single": 0.02})
    emit = EmitSection(token_budget=2600, max_epochs=9)
    return emit_manifest(mixed_catalog, mixture, emit=emit, directory=mixed_catalog.root / "manifest")
