"""Which documents the tokens of a block come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.errors import CorruptArtefactError
from fastmix_data.foreign.storage import SHARD
from fastmix_data.messages import first_line
from fastmix_data.shards.catalog import Catalog, ShardRow
from fastmix_data.workdir import Workdir

_SHOWN = ("file", "locator", "num_tokens", "num_prompt_tokens", "text_hash")


def documents_of_block(catalog: Catalog, row: ShardRow, *, block: int) -> list[dict[str, Any]] | None:
    """Documents with a token in a block, in their order there; None if the workdir has no documents tables, and of imports.

    Each has `file`, `locator`, `num_tokens`, `num_prompt_tokens`, `text_hash`, the `first` and `last` token of the block that is its
    own, and whether it `begins_before` the block.

    Raises:
        CorruptArtefactError: a table cannot be read.
    """
    if row.storage != SHARD:
        return None  # of imports there are no tables
    # A partition is of one source, whose name its table starts with; of 100,000 tables some hundred are left to look into.
    tables = sorted(Workdir(catalog.root).documents.glob(f"{row.source}-*.parquet"))
    if not tables:
        return None
    shards = catalog.by_split[row.source, row.split]
    # Shards of a source's split, end to end, are one line of tokens on which documents lie, without gaps unless there is padding.
    start_S = np.concatenate([[0], np.cumsum([other.num_tokens for other in shards])])
    number = shards.index(row)
    begin = int(start_S[number]) + block * catalog.info.block_tokens
    # A short block ends before its stride does; what follows is the next shard's.
    end = min(begin + catalog.info.block_tokens, int(start_S[number + 1]))
    found: list[dict[str, Any]] = []
    # The first document of the block may have begun any number of shards before.
    for shard in range(number, -1, -1):
        found = [*_starting_in(catalog, shards[shard], int(start_S[shard]), tables=tables), *found]
        if found and found[0]["start"] <= begin:
            break
    return [
        {
            **{name: document[name] for name in _SHOWN},
            "first": max(document["start"] - begin, 0),
            "last": min(document["start"] + document["num_tokens"], end) - begin - 1,
            "begins_before": document["start"] < begin,
        }
        for document in found
        if document["start"] < end and document["start"] + document["num_tokens"] > begin
    ]


def _starting_in(catalog: Catalog, row: ShardRow, shard_start: int, *, tables: list[Path]) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(tables, columns=[*_SHOWN, "block", "offset"], filters=[("shard", "=", row.path)])
    except (pa.ArrowInvalid, OSError) as error:
        problem = f"cannot be read ({first_line(error)})"
        raise CorruptArtefactError(tables[0].parent, problem, "run `fastmix preprocess --replace`") from error
    documents = [
        {**document, "start": shard_start + document["block"] * catalog.info.block_tokens + document["offset"]}
        for document in table.to_pylist()
    ]
    return sorted(documents, key=lambda document: int(document["start"]))
