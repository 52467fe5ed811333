"""Tokens that are there already, as rows of the catalog: ranges of their files, and one small shard for what fills no block.

A file of n tokens is (n - 1) // T blocks where it lies. What is left of each, at most a block, goes into shards of ours, one file's after
another's, so that no token is lost and 100,000 files do not make 100,000 shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.foreign.foreign_file import ForeignFile
from fastmix_data.foreign.identity import sampled_identity
from fastmix_data.foreign.storage import TAIL
from fastmix_data.recipe.sources import ShardsSection
from fastmix_data.shards.catalog import ShardRow
from fastmix_data.shards.shard_format import EXAMPLE_START, ShardLayout
from fastmix_data.shards.shard_writer import ShardNames, ShardStream
from fastmix_data.tokens.tokenizer import TokenizerInfo
from fastmix_data.workdir import Workdir
from pipelines.inputs.partitions import Partition
from pipelines.preprocess.held_out_blocks import held_out_runs, split_blocks
from pipelines.preprocess.import_checks import documents_per_token
from pipelines.preprocess.receipts import Receipt, fingerprint_files, save_receipt
from pipelines.reading.bad_text import DocumentCounts

_MASK_READ_AT_ONCE = 1 << 24
_Split = Literal["train", "valid"]
NumBefore = Callable[[int], int]


@dataclass(frozen=True)
class ImportJob:
    """Everything that is needed to know."""

    partition: Partition
    shards: ShardsSection
    tokenizer: TokenizerInfo
    root: Path
    fingerprint: str

    @property
    def files(self) -> Sequence[ForeignFile]:
        """The foreign files."""
        assert self.partition.tokens is not None
        return self.partition.tokens.files

    @property
    def layout(self) -> ShardLayout:
        """Of the shard that is written, and the length of all blocks."""
        return ShardLayout(self.shards.block_tokens, np.dtype(self.files[0].dtype), self.files[0].mask is not None)

    @property
    def tail_split(self) -> _Split:
        """Where what fills no block goes."""
        return "valid" if self.partition.origin == "valid" else "train"


def import_tokens(job: ImportJob, *, held_out_hash: str) -> Receipt:
    """Describe an import; writes nothing but its last shard and its receipt.

    Args:
        held_out_hash: see `Receipt`.

    Raises:
        InputError: a table of documents cannot be read.
    """
    files = fingerprint_files(job.partition)
    if job.partition.tokens is not None and job.partition.tokens.info is not None:
        rows = [row for row in job.partition.tokens.rows if job.partition.origin in ("both", row.split)]
    else:
        before_F = [documents_before(file, eos_id=job.tokenizer.eos_id, num_files=len(job.files)) for file in job.files]
        rows = [*_foreign_rows(job, before_F), *_write_tails(job, before_F)]
    counts = DocumentCounts(num_documents=sum(row.num_documents for row in rows))
    receipt = Receipt(
        label=job.partition.label,
        fingerprint=job.fingerprint,
        held_out_hash=held_out_hash,
        files=files,
        shards=tuple(rows),
        documents="",
        counts=asdict(counts),
        valid_hashes="",
    )
    save_receipt(Workdir(job.root), receipt)
    return receipt


def _foreign_rows(job: ImportJob, documents_F: Sequence[NumBefore]) -> Iterator[ShardRow]:
    """Ranges of the files, none larger than a shard: what reads one shard at a time stays within the same memory."""
    block, size = job.layout.block_tokens, job.layout.max_blocks(job.shards.max_shard_bytes)
    blocks_F = [(file.num_tokens - 1) // block for file in job.files]
    num_blocks = sum(blocks_F)
    runs = held_out_runs(num_blocks, job.shards.valid_fraction) if job.partition.origin == "both" else []
    before = 0
    for file, num_here, documents in zip(job.files, blocks_F, documents_F, strict=True):
        if not num_here:
            continue
        describe = _Describe(job, file, documents)
        stretches = list(split_blocks(before, before + num_here, runs))
        if job.partition.origin == "valid":
            stretches = [("valid", before, before + num_here)]
        for number, (split, first, last) in enumerate(stretches):
            following = stretches[number + 1][0] if number + 1 < len(stretches) else job.tail_split
            for start in range(first - before, last - before, size):
                stop = min(start + size, last - before)
                yield describe.row(split, start, stop, is_cut=stop == last - before and following != split)
        before += num_here


class _Describe:
    """Rows of one file."""

    def __init__(self, job: ImportJob, file: ForeignFile, documents: NumBefore) -> None:
        assert job.partition.tokens is not None
        self._job, self._file = job, file
        self._identity = sampled_identity([file.path, *([file.mask] if file.mask else [])])
        self._path = job.partition.tokens.path_in_catalog(file.path)
        self._mask_path = job.partition.tokens.path_in_catalog(file.mask) if file.mask else ""
        self._num_bytes = file.path.stat().st_size
        self._documents_before = documents

    def row(self, split: str, start: int, stop: int, *, is_cut: bool) -> ShardRow:
        """Blocks `start` to `stop`; `is_cut` where the token after them is of the other split.

        That token would be the label of the last one: it is read by neither, as no document of one split is in the other.
        """
        block = self._job.layout.block_tokens
        first, num_tokens = start * block, (stop - start) * block
        num_labels = num_tokens - is_cut
        return ShardRow(
            source=self._job.partition.source,
            split=split,
            path=self._path,
            num_blocks=stop - start,
            num_tokens=num_tokens,
            num_labels=num_labels,
            num_loss_tokens=num_labels if self._file.mask is None else _count_loss(self._file, first + 1, num_labels),
            num_documents=self._documents_before(first + num_tokens) - self._documents_before(first),
            dtype=self._job.layout.dtype.str,
            has_mask=self._file.mask is not None,
            bytes=self._num_bytes,
            sha256=self._identity,
            storage=self._file.storage,
            first_token=first,
            mask_path=self._mask_path,
        )


def documents_before(file: ForeignFile, *, eos_id: int, num_files: int) -> NumBefore:
    """How many documents begin before a token: as the format has it, else at the rate of ends in samples."""
    if file.documents is not None:
        return file.documents.before
    rate = documents_per_token(file, eos_id=eos_id, num_files=num_files)
    # One begins with the file, and the last end begins none.
    return lambda token: min(1 + int(rate * (token - 1)), max(1, round(rate * file.num_tokens))) if token > 0 else 0


def _count_loss(file: ForeignFile, first: int, count: int) -> int:
    """Tokens with loss among some of them. A mask is read as a whole: it is what weights by loss tokens go by."""
    starts = range(first, first + count, _MASK_READ_AT_ONCE)
    return sum(int(np.count_nonzero(file.read_mask(start, min(_MASK_READ_AT_ONCE, first + count - start)))) for start in starts)


def _write_tails(job: ImportJob, documents_F: Sequence[NumBefore]) -> list[ShardRow]:
    """Shards of what is left of each file after its last whole block."""
    layout = job.layout
    names = ShardNames(job.root, job.partition.source, job.tail_split, job.partition.number)
    stream = ShardStream(names, layout=layout, max_shard_bytes=job.shards.max_shard_bytes, eos_id=job.tokenizer.eos_id)
    for file, before in zip(job.files, documents_F, strict=True):
        first = (file.num_tokens - 1) // layout.block_tokens * layout.block_tokens
        # Where in the rest they begin is asked by nobody: rows count them.
        starts_D: Int64s = np.zeros(before(file.num_tokens) - before(first), np.int64)
        tokens = file.read(first, layout.block_tokens).astype(layout.dtype)
        if file.mask is None:
            stream.append(tokens, starts_D=starts_D)
            continue
        mask = (file.read_mask(first, layout.block_tokens) != 0).astype(np.uint8)
        starts = np.zeros(len(tokens), np.uint8)
        starts[1:][tokens[:-1] == job.tokenizer.eos_id] = EXAMPLE_START
        # Before it lies the end of another file; its own label was the last of the blocks.
        starts[0], mask[0] = EXAMPLE_START, 0
        stream.append(tokens, starts_D=starts_D, loss_mask=mask, starts=starts)
    return [replace(row, storage=TAIL) for row in stream.close()]
