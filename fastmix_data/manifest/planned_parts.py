"""Planned pools as rows of `parts.parquet`, made column by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fastmix_data.manifest.block_set import BlockSet, SourceShards
from fastmix_data.manifest.parts import PARTS_SCHEMA, Parts


def parts_of(pools: Sequence[tuple[BlockSet, int]]) -> Parts:
    """Ranges of pools, given as blocks and repeats, in their order."""
    of_shards: dict[int, pa.Table] = {}
    tables = []
    for number, (blocks, repeats) in enumerate(pools):
        if id(blocks.shards) not in of_shards:
            of_shards[id(blocks.shards)] = _shard_table(blocks.shards)
        shards = of_shards[id(blocks.shards)]
        counted = {
            "block_start": blocks.start_R,
            "block_stop": blocks.stop_R,
            "pool": np.full(len(blocks.shard_R), number),
            "repeats": np.full(len(blocks.shard_R), repeats),
            "num_tokens": blocks.num_tokens_R,
            "num_labels": blocks.num_labels_R,
        }
        chosen = shards.take(pa.array(blocks.shard_R))
        of_ranges = {name: chosen[name] for name in chosen.column_names}
        of_ranges |= {name: pa.chunked_array([pa.array(values, pa.int64())]) for name, values in counted.items()}
        tables.append(pa.table([of_ranges[name] for name in PARTS_SCHEMA.names], schema=PARTS_SCHEMA))
    return Parts(pa.concat_tables(tables) if tables else PARTS_SCHEMA.empty_table())


def _shard_table(shards: SourceShards) -> pa.Table:
    """What parts repeat of their shards."""
    names = {"source": "source", "path": "path", "sha256": "sha256", "bytes": "bytes", "dtype": "dtype", "has_mask": "has_mask"}
    names |= {"shard_blocks": "num_blocks", "storage": "storage", "first_token": "first_token", "mask_path": "mask_path"}
    columns = {name: [getattr(row, of_row) for row in shards.rows] for name, of_row in names.items()}
    return pa.table(columns, schema=pa.schema([PARTS_SCHEMA.field(name) for name in names]))
