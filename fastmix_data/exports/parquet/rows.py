"""A manifest's blocks as rows of Parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.arrow_arrays import booleans, numbers, strings
from fastmix_data.atomic_files import atomic_file
from fastmix_data.exports.format import ExportRequest, OnTokens, Receipt
from fastmix_data.exports.pools import Pool, pools_of
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.manifest.written_order import order_of
from fastmix_data.shards.open_shard import Shard
from fastmix_data.shards.table_rows import column_of

TOKEN_ID_LIMIT = 1 << 31
# Of uncompressed rows. Readers that stream hold one row group of each source in memory.
_ROW_GROUP_BYTES = 1 << 23
_PLANNED = 1 << 18  # positions of the order at a time


def num_rows(part: Part, block_tokens: int) -> int:
    """Rows of one pass: blocks that have a label. A last block of one token has none; that token is the label before it."""
    return -(-part.num_labels // block_tokens)


def row_schema(manifest: Manifest) -> pa.Schema:
    """The columns; alike in all files of a corpus, so that data sets of plain text and of examples can be interleaved."""
    length = manifest.block_tokens + 1
    columns = {"source": pa.string(), "input_ids": pa.list_(pa.int32(), length), "num_labels": pa.int32()}
    if manifest.has_masks:
        columns |= {"loss_mask": pa.list_(pa.bool_(), length), "starts": pa.list_(pa.uint8(), length)}
    return pa.schema(columns)


@dataclass(frozen=True)
class WriteRows:
    """One Parquet file of a pool.

    Attributes:
        pieces: number of a part and range of its rows, in the order of the file.
    """

    path: str
    pieces: tuple[tuple[int, int, int], ...]
    num_tokens: int

    @property
    def name(self) -> str:
        """Of its receipt."""
        return self.path.replace("/", "--")

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Write the file, a row group at a time."""
        manifest, schema = request.manifest, row_schema(request.manifest)
        with (
            atomic_file(request.directory / self.path) as file,
            pq.ParquetWriter(file, schema, compression="zstd", write_statistics=False) as writer,
        ):
            for number, start, stop in self.pieces:
                part = manifest.parts[number]
                shard = manifest.open(part, root=request.root)
                for first in range(start, stop, step := _rows_within(_ROW_GROUP_BYTES, manifest)):
                    last = min(first + step, stop)
                    writer.write_batch(_batch(manifest, part, shard, first, last, schema=schema))
                    on_tokens((last - first) * manifest.block_tokens)
        return {"files": [self.path]}


def files_of_pool(request: ExportRequest, pool: Pool) -> list[WriteRows]:
    """The files of a pool, each of as many rows as `max_file_bytes` would hold uncompressed; parts follow each other without a gap."""
    manifest, limit = request.manifest, _rows_within(request.max_file_bytes, request.manifest)
    files: list[list[tuple[int, int, int]]] = []
    room = 0
    for number, part in enumerate(pool.parts, pool.first_part):
        start, count = 0, num_rows(part, manifest.block_tokens)
        while start < count:
            if not room:
                files.append([])
                room = limit
            taken = min(room, count - start)
            files[-1].append((number, start, start + taken))
            start, room = start + taken, room - taken
    return [
        WriteRows(
            f"data/{pool.name}/train-{index:05d}-of-{len(files):05d}.parquet",
            tuple(pieces),
            sum(stop - start for _, start, stop in pieces) * manifest.block_tokens,
        )
        for index, pieces in enumerate(files)
    ]


def write_order(path: Path, manifest: Manifest) -> None:
    """The manifest's order as a `.npy` of row numbers, over the pools' rows one after another: an int64 for each block of the run."""
    order = order_of(manifest, sequence_length=manifest.block_tokens)
    rows_P = np.zeros(len(manifest.parts), np.int64)
    for pool in pools_of(manifest):
        rows_P[pool.first_part : pool.first_part + len(pool.parts)] = [
            num_rows(part, manifest.block_tokens) for part in pool.parts
        ]
    # Of a part's first block if the part began with its shard's first one, so that a block's number can be added.
    offset_P = np.cumsum(rows_P) - rows_P - column_of(manifest.parts, "block_start")
    header = {"descr": "<i8", "fortran_order": False, "shape": (order.num_sequences,)}
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, order.num_sequences, _PLANNED):
            located = order.locate(np.arange(first, min(first + _PLANNED, order.num_sequences)))
            file.write((offset_P[located.part_N] + located.block_N).astype("<i8").tobytes())


def _rows_within(num_bytes: int, manifest: Manifest) -> int:
    per_token = 4 if manifest.example_tokens is None else 6
    return max(1, num_bytes // (per_token * (manifest.block_tokens + 1)))


def _batch(manifest: Manifest, part: Part, shard: Shard, first: int, last: int, *, schema: pa.Schema) -> pa.RecordBatch:
    rows, block = slice(part.block_start + first, part.block_start + last), manifest.block_tokens
    tokens_NT = shard.tokens_NT[rows]
    count, length = tokens_NT.shape
    labels_N = np.minimum(part.num_labels - np.arange(first, last) * block, block).astype(np.int32)
    columns = {
        "source": strings([part.source] * count).cast(pa.string()),
        "input_ids": _lists(numbers(tokens_NT.astype(np.int32).reshape(-1)), length),
        "num_labels": numbers(labels_N),
    }
    if manifest.has_masks:
        mask, starts = shard.loss_mask_NT, shard.starts_NT
        carries_loss_NT = np.ones(tokens_NT.shape, np.bool_) if mask is None else mask[rows].astype(np.bool_)
        starts_NT = np.zeros(tokens_NT.shape, np.uint8) if starts is None else starts[rows]
        columns["loss_mask"] = _lists(booleans(carries_loss_NT.reshape(-1)), length)
        columns["starts"] = _lists(numbers(starts_NT.reshape(-1)), length)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _lists(values: pa.Array, length: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(values, length)
