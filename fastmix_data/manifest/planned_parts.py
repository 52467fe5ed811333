"""Planned pools as rows of `parts.parquet`, made column by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fastmix_data.arrow_arrays import numbers
from fastmix_data.manifest.block_set import BlockSet
from fastmix_data.manifest.parts import Part
from fastmix_data.shards.table_rows import TableRows, schema_of

_OF_BLOCKS = {"block_start": "start_R", "block_stop": "stop_R", "num_tokens": "num_tokens_R", "num_labels": "num_labels_R"}
_OF_SHARD = {"shard_blocks": "num_blocks"}  # the name in the catalog, where it is another


def planned_parts(pools: Sequence[tuple[BlockSet, int]]) -> TableRows[Part]:
    """Ranges of pools, given as blocks and repeats, in their order."""
    schema = schema_of(Part)
    # A column of all pools at a time: of two million parts, which take half a gigabyte, no more than a column is there twice.
    columns = [
        pa.chunked_array(
            [chunk for number, (blocks, repeats) in enumerate(pools) for chunk in _chunks(field.name, blocks, number, repeats)],
            field.type,
        ).combine_chunks()
        for field in schema
    ]
    return TableRows(pa.table(columns, schema=schema), Part)


def _chunks(name: str, blocks: BlockSet, pool: int, repeats: int) -> Sequence[pa.Array]:
    """A column of one pool's parts."""
    if name in ("pool", "repeats"):
        return [numbers(np.full(len(blocks.shard_R), pool if name == "pool" else repeats))]
    if name in _OF_BLOCKS:
        return [numbers(getattr(blocks, _OF_BLOCKS[name]))]
    # What parts repeat of their shards.
    of_shards = blocks.shards.rows.table.column(_OF_SHARD.get(name, name))
    chunks: list[pa.Array] = of_shards.take(numbers(blocks.shard_R)).chunks
    return chunks
