"""The work of one partition, done by one Dask worker: read, split, encode, write shards, leave a receipt."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from fastmix_data.artefacts import atomic_file
from fastmix_data.errors import InputError
from fastmix_data.recipe.sources import ShardsSection, TextSection
from fastmix_data.shards.stream import ShardNames, ShardStream
from fastmix_data.shards.strided import ShardLayout, token_dtype
from fastmix_data.tokens.encoding import Backend, EncodedDocuments, Encoder, encode_documents
from fastmix_data.tokens.tokenizer import TokenizerInfo
from pipelines.preprocess.arrow_arrays import booleans, constant, labels, numbers
from pipelines.preprocess.partitions import Partition
from pipelines.preprocess.read_counts import ReadCounts
from pipelines.preprocess.readers import column_names, read_partition
from pipelines.preprocess.receipts import Hashes, Receipt, encode_hashes, fingerprint_files, hash_of_held_out, save_receipt

_ROWS_OF_A_GROUP = 65_536
_LABEL = pa.dictionary(pa.int32(), pa.large_string())
_DOCUMENTS_SCHEMA = pa.schema(
    [
        ("source", _LABEL),
        ("split", _LABEL),
        ("file", _LABEL),
        ("locator", pa.large_string()),
        ("shard", _LABEL),
        ("block", pa.int32()),
        ("offset", pa.int32()),
        ("num_tokens", pa.int64()),
        ("num_prompt_tokens", pa.int64()),
        ("text_hash", pa.uint64()),
    ]
)
Advance = Callable[[int], None]


@dataclass(frozen=True)
class PartitionJob:
    """Everything a worker needs to know; small, and the same whoever does it."""

    partition: Partition
    section: TextSection
    shards: ShardsSection
    tokenizer: TokenizerInfo
    backend: Backend
    root: Path
    fingerprint: str

    @property
    def layout(self) -> ShardLayout:
        """How its shards are laid out."""
        return ShardLayout(self.shards.block_tokens, token_dtype(self.tokenizer.vocab_size), self.section.has_mask)


@lru_cache(maxsize=4)
def _encoder(path: Path, sha256: str, backend: Backend) -> Encoder:
    del sha256  # part of the key: a tokenizer replaced under the same path is read again
    return Encoder(path, backend=backend)


def hash_documents(batch: pa.RecordBatch) -> Hashes:
    """XXH3-64 of each document's text; of prompt, newline and completion where a document is a pair.

    The recipe's separator is left out of it, so that equal pairs are equal documents in whatever source.
    """
    views = [_cells(batch.column(name)) for name in ("text",) if name in batch.schema.names]
    if views:
        return np.fromiter(map(xxhash.xxh3_64_intdigest, views[0]), np.uint64, batch.num_rows)
    pairs = zip(_cells(batch.column("prompt")), _cells(batch.column("completion")), strict=True)
    digests = (xxhash.xxh3_64_intdigest(b"\n".join(pair)) for pair in pairs)
    return np.fromiter(digests, np.uint64, batch.num_rows)


def _cells(column: pa.Array) -> list[memoryview]:
    """UTF-8 of each cell, without a copy."""
    data = column.buffers()[2]
    view = memoryview(data if data is not None else b"")
    return [view[start:stop] for start, stop in itertools.pairwise(_offsets(column).tolist())]


def is_held_out(hashes: Hashes, valid_fraction: float) -> npt.NDArray[np.bool_]:
    """The rule by which documents of sources without valid_files are held out; the same for every source."""
    return hashes < np.uint64(int(valid_fraction * 2.0**64))


@dataclass
class _Held:
    """Documents of a batch that wait for the end of the partition, when they are put in the order of their hash."""

    encoded: EncodedDocuments
    hashes: Hashes
    places: pa.RecordBatch


@dataclass
class _Output:
    """The two splits of a partition and the table of its documents on their way to disk."""

    job: PartitionJob
    documents: pq.ParquetWriter
    streams: dict[str, ShardStream] = field(default_factory=dict)
    pending: list[pa.RecordBatch] = field(default_factory=list)
    held: list[_Held] = field(default_factory=list)
    num_tokens: int = 0

    def names(self, split: str) -> ShardNames:
        return ShardNames(self.job.root, self.job.partition.source, split, self.job.partition.number)

    def write(self, split: str, encoded: EncodedDocuments, hashes: Hashes, places: pa.RecordBatch) -> None:
        """Add documents to a split and to the table."""
        job = self.job
        if split not in self.streams:
            self.streams[split] = ShardStream(
                self.names(split), layout=job.layout, max_shard_bytes=job.shards.max_shard_bytes, eos_id=job.tokenizer.eos_id
            )
        shards, blocks, offsets = self.streams[split].append(
            encoded.tokens, starts_D=encoded.starts_D, loss_mask=encoded.loss_mask
        )
        self.num_tokens += len(encoded.tokens)
        first = int(shards[0])
        paths = [self.names(split).path(shard) for shard in range(first, int(shards[-1]) + 1)]
        columns = [
            constant(job.partition.source, len(hashes)),
            constant(split, len(hashes)),
            places.column("file"),
            places.column("locator"),
            labels(paths, shards - first),
            *map(numbers, (blocks.astype(np.int32), offsets.astype(np.int32), np.diff(encoded.ends_D, prepend=0))),
            *map(numbers, (encoded.num_prompt_tokens_D, hashes)),
        ]
        self.pending.append(pa.RecordBatch.from_arrays(columns, schema=_DOCUMENTS_SCHEMA))
        if sum(batch.num_rows for batch in self.pending) >= _ROWS_OF_A_GROUP:
            self.flush_documents()

    def flush_documents(self) -> None:
        if self.pending:
            self.documents.write_table(pa.Table.from_batches(self.pending).unify_dictionaries())
            self.pending = []

    def write_held(self) -> Hashes:
        """Write the held-out documents in the order of their hash; the search later takes halves of each shard."""
        if not self.held:
            return np.empty(0, np.uint64)
        hashes = np.concatenate([held.hashes for held in self.held])
        number_of = np.concatenate([np.full(len(held.hashes), number) for number, held in enumerate(self.held)])
        within = np.concatenate([np.arange(len(held.hashes)) for held in self.held])
        order = np.argsort(hashes, kind="stable")
        places = (
            pa.Table.from_batches([held.places for held in self.held])
            .unify_dictionaries()
            .take(numbers(order))
            .combine_chunks()
            .to_batches()[0]
        )
        self.write("valid", _reordered(self.held, number_of[order].tolist(), within[order].tolist()), hashes[order], places)
        self.held = []
        return hashes[order]


def _reordered(held: list[_Held], numbers: list[int], within: list[int]) -> EncodedDocuments:
    spans = []
    for number, document in zip(numbers, within, strict=True):
        encoded = held[number].encoded
        stop = int(encoded.ends_D[document])
        start = int(encoded.ends_D[document - 1]) if document else 0
        spans.append((encoded, start, stop, int(encoded.num_prompt_tokens_D[document])))
    masks = [encoded.loss_mask[start:stop] for encoded, start, stop, _ in spans if encoded.loss_mask is not None]
    return EncodedDocuments(
        np.concatenate([encoded.tokens[start:stop] for encoded, start, stop, _ in spans]),
        np.cumsum([stop - start for _, start, stop, _ in spans]),
        np.array([num_prompt for *_, num_prompt in spans], np.int64),
        np.concatenate(masks) if masks else None,
    )


def run_partition(job: PartitionJob, held_out: Hashes, advance: Advance | None = None) -> Receipt:
    """Turn one partition into shards.

    Args:
        held_out: sorted hashes of documents of earlier waves' valid splits; training documents among them are dropped.
        advance: told the number of tokens after every batch.
    Raises:
        InputError: the input is malformed, or changes while it is read.
    """
    files = fingerprint_files(job.partition)
    counts, num_leaked = ReadCounts(), 0
    totals = {"num_documents": 0, "num_text_bytes": 0}
    documents = f"documents/{job.partition.label}.parquet"
    with (
        atomic_file(job.root / documents) as file,
        pq.ParquetWriter(file, _DOCUMENTS_SCHEMA, compression="zstd") as writer,
    ):
        output = _Output(job, writer)
        for batch in read_partition(job.partition, job.section, counts):
            before = output.num_tokens
            num_leaked += _add_batch(batch, job, held_out, output, totals)
            if advance is not None:
                advance(output.num_tokens - before)
        valid_hashes = output.write_held()
        output.flush_documents()
        rows = [row for split in ("train", "valid") if split in output.streams for row in output.streams[split].close()]
    _require_unchanged(job.partition)
    receipt = Receipt(
        label=job.partition.label,
        fingerprint=job.fingerprint,
        held_out_hash=hash_of_held_out(held_out),
        files=files,
        shards=tuple(rows),
        documents=documents,
        counts={
            **totals,
            "num_bad_text": counts.num_bad_text,
            "num_empty": counts.num_empty,
            "num_leaked_documents": num_leaked,
        },
        valid_hashes=encode_hashes(valid_hashes.tolist()),
    )
    save_receipt(job.root, receipt)
    return receipt


def _add_batch(batch: pa.RecordBatch, job: PartitionJob, held_out: Hashes, output: _Output, totals: dict[str, int]) -> int:
    """Split and encode one batch; returns how many training documents were dropped because they are held out elsewhere."""
    hashes = hash_documents(batch)
    if job.partition.origin == "both":
        is_valid = is_held_out(hashes, job.shards.valid_fraction)
    else:
        is_valid = np.full(len(hashes), job.partition.origin == "valid")
    is_leaked = ~is_valid & np.isin(hashes, held_out) if len(held_out) else np.zeros(len(hashes), np.bool_)
    names = column_names(job.section)
    columns = [batch.column(name).to_pylist() for name in names]
    lengths = np.sum([np.diff(_offsets(batch.column(name))) for name in names], axis=0)
    for split, chosen in (("train", ~is_valid & ~is_leaked), ("valid", is_valid)):
        if not chosen.any():
            continue
        kept = chosen.tolist()
        encoded = encode_documents(
            _encoder(job.tokenizer.path, job.tokenizer.sha256, job.backend),
            [list(itertools.compress(column, kept)) for column in columns],
            separator=job.section.separator,
            eos_id=job.tokenizer.eos_id,
            dtype=job.layout.dtype,
        )
        totals["num_documents"] += len(encoded.ends_D)
        totals["num_text_bytes"] += int(lengths[chosen].sum())
        places = batch.select(["file", "locator"]).filter(booleans(chosen))
        if split == "train":
            output.write("train", encoded, hashes[chosen], places)
        else:
            output.held.append(_Held(encoded, hashes[chosen], places))
    return int(is_leaked.sum())


def _offsets(column: pa.Array) -> npt.NDArray[np.int64]:
    """Where each cell of a text column starts in its buffer, and the end of the last, shape (num_rows + 1,)."""
    return np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]


def _require_unchanged(partition: Partition) -> None:
    """A file that grows while it is read would leave a receipt for something that never existed."""
    for file in partition.files:
        if file.is_remote:
            continue
        status = Path(file.path).stat()
        if (status.st_size, str(status.st_mtime_ns)) != (file.num_bytes, file.version):
            raise InputError(f"{file.name}: changed while it was read; run the same command again when it is complete")
