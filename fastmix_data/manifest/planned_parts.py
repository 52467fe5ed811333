"""Planned pools as rows of `parts.parquet`, made column by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fastmix_data.arrow_arrays import numbers
from fastmix_data.manifest.block_set import BlockSet
from fastmix_data.manifest.parts import Part
from fastmix_data.shards.table_rows import TableRows, schema_of

_OF_SHARD = {"shard_blocks": "num_blocks"}  # the name in the catalog, where it is another


def planned_parts(pools: Sequence[tuple[BlockSet, int]]) -> TableRows[Part]:
    """Ranges of pools, given as blocks and repeats, in their order."""
    schema = schema_of(Part)
    tables = [schema.empty_table()]
    for number, (blocks, repeats) in enumerate(pools):
        of_ranges = {
            "block_start": blocks.start_R,
            "block_stop": blocks.stop_R,
            "pool": np.full(len(blocks.shard_R), number),
            "repeats": np.full(len(blocks.shard_R), repeats),
            "num_tokens": blocks.num_tokens_R,
            "num_labels": blocks.num_labels_R,
        }
        # What parts repeat of their shards.
        chosen = blocks.shards.rows.table.take(numbers(blocks.shard_R))
        columns = [numbers(of_ranges[n]) if n in of_ranges else chosen[_OF_SHARD.get(n, n)] for n in schema.names]
        tables.append(pa.table(columns, schema=schema))
    return TableRows(pa.concat_tables(tables), Part)
