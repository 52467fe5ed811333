"""The work of one partition, done by one Dask worker: read, split, encode, write shards, leave a receipt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.arrays import Bools, Int64s, UInt64s
from fastmix_data.arrow_arrays import booleans, constant, labels, numbers, offsets_of, one_batch
from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import InputError
from fastmix_data.permutation import derive_keys
from fastmix_data.recipe.sources import ShardsSection, TextSection
from fastmix_data.shards.shard_format import ShardLayout
from fastmix_data.shards.shard_writer import ShardNames, ShardStream
from fastmix_data.tokens.encoding import EncodedDocuments
from fastmix_data.tokens.fidelity import LossCount
from fastmix_data.tokens.tokenizer import TokenizerInfo
from fastmix_data.workdir import Workdir
from pipelines.inputs.partitions import Partition
from pipelines.preprocess.encode_batch import EncodingPlan, encode_batch
from pipelines.preprocess.held_out import encode_hashes, hash_documents, hash_of_held_out, is_held_out
from pipelines.preprocess.packing import TOKENS_PACKED_AT_ONCE, fit_examples, pack_examples
from pipelines.preprocess.receipts import Receipt, fingerprint_files, save_receipt
from pipelines.preprocess.sampling.thinning import SampleCount, Thinning
from pipelines.reading.bad_records import BadRecords
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.documents import column_names
from pipelines.reading.readers import read_partition

# Whoever asks for the documents of a block reads whole row groups.
_ROWS_OF_A_GROUP = 65_536
_WINDOW_STREAM = 51
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


@dataclass(frozen=True)
class PartitionJob:
    """Everything a worker needs to know; small, and the same whoever does it.

    `example_tokens` is the length of the windows that examples are packed into; None if the recipe has no examples. `thinning` says
    which documents are tokenized; all are where there is none.
    """

    partition: Partition
    section: TextSection
    shards: ShardsSection
    encoding: EncodingPlan
    root: Path
    fingerprint: str
    example_tokens: int | None
    thinning: Thinning | None = None

    @property
    def tokenizer(self) -> TokenizerInfo:
        """The tokenizer of all sources."""
        return self.encoding.tokenizer

    @property
    def layout(self) -> ShardLayout:
        """How its shards are laid out."""
        return ShardLayout(self.shards.block_tokens, self.encoding.dtype, self.section.has_mask)


@dataclass
class _WaitingBatch:
    """Documents of a batch that wait to be put into another order: held-out ones, and examples until there are enough to pack."""

    encoded: EncodedDocuments
    hashes: UInt64s
    places: pa.RecordBatch


@dataclass
class _Output:
    """The two splits of a partition and the table of its documents on their way to disk."""

    job: PartitionJob
    documents: pq.ParquetWriter
    streams: dict[str, ShardStream] = field(default_factory=dict)
    rows_to_write: list[pa.RecordBatch] = field(default_factory=list)
    waiting: dict[str, list[_WaitingBatch]] = field(default_factory=lambda: {"train": [], "valid": []})
    num_packed: int = 0
    counts: DocumentCounts = field(default_factory=DocumentCounts)
    lost: LossCount = field(default_factory=LossCount)
    num_tokens: int = 0
    sample: SampleCount = field(default_factory=SampleCount)
    left_out: list[UInt64s] = field(default_factory=list)

    def names(self, split: str) -> ShardNames:
        return ShardNames(self.job.root, self.job.partition.source, split, self.job.partition.number)

    def add(self, split: str, encoded: EncodedDocuments, hashes: UInt64s, places: pa.RecordBatch) -> None:
        """Take documents of a batch."""
        job = self.job
        if job.section.has_mask:
            assert job.example_tokens is not None
            encoded, document_E = fit_examples(
                encoded, window_tokens=job.example_tokens, on_long=job.section.on_long_example, counts=self.counts
            )
            self._count_tokens(split, encoded, hashes[document_E])
            self.counts.num_documents += len(np.unique(document_E))
            if len(document_E):
                self.waiting[split].append(_WaitingBatch(encoded, hashes[document_E], places.take(numbers(document_E))))
            if split == "train" and sum(len(batch.encoded.tokens) for batch in self.waiting[split]) >= TOKENS_PACKED_AT_ONCE:
                self.write_packed(split)
            return
        self._count_tokens(split, encoded, hashes)
        self.counts.num_documents += len(encoded.ends_D)
        if split == "valid":
            self.waiting[split].append(_WaitingBatch(encoded, hashes, places))
        else:
            self.write(split, encoded, hashes, places)

    def _count_tokens(self, split: str, encoded: EncodedDocuments, hashes: UInt64s) -> None:
        thinning = self.job.thinning
        if thinning is not None and split == "train":
            self.sample.add_tokens(thinning.ranks(hashes), np.diff(encoded.ends_D, prepend=0))

    def write(self, split: str, encoded: EncodedDocuments, hashes: UInt64s, places: pa.RecordBatch) -> None:
        """Add documents to a split and to the table."""
        place = self._stream(split).append(encoded.tokens, starts_D=encoded.starts_D)
        self._write_table(split, place, np.diff(encoded.ends_D, prepend=0), encoded.num_prompt_tokens_D, hashes, places)

    def write_packed(self, split: str) -> None:
        """Pack the examples of a split that wait, and add them to it and to the table."""
        if not self.waiting[split]:
            return
        job, waiting = self.job, _merged(self.waiting[split])
        self.waiting[split] = []
        assert job.example_tokens is not None
        packed = pack_examples(
            waiting.encoded,
            window_tokens=job.example_tokens,
            eos_id=job.tokenizer.eos_id,
            key=derive_keys(_WINDOW_STREAM, job.partition.number, self.num_packed),
            # Of held-out examples either half is to have some, also where all fit into one window.
            min_windows=2 if split == "valid" else 1,
        )
        self.num_packed += 1
        place = self._stream(split).append(
            packed.tokens, starts_D=packed.start_E, loss_mask=packed.loss_mask, starts=packed.starts
        )
        order_E = packed.order_E
        num_tokens_E = np.diff(waiting.encoded.ends_D, prepend=0)[order_E]
        num_prompt_tokens_E = waiting.encoded.num_prompt_tokens_D[order_E]
        places = waiting.places.take(numbers(order_E))
        self._write_table(split, place, num_tokens_E, num_prompt_tokens_E, waiting.hashes[order_E], places)

    def _stream(self, split: str) -> ShardStream:
        job = self.job
        if split not in self.streams:
            self.streams[split] = ShardStream(
                self.names(split), layout=job.layout, max_shard_bytes=job.shards.max_shard_bytes, eos_id=job.tokenizer.eos_id
            )
        return self.streams[split]

    def _write_table(
        self,
        split: str,
        place: tuple[Int64s, Int64s, Int64s],
        num_tokens_D: Int64s,
        num_prompt_tokens_D: Int64s,
        hashes: UInt64s,
        places: pa.RecordBatch,
    ) -> None:
        job, (shard_D, block_D, offset_D) = self.job, place
        self.num_tokens += int(num_tokens_D.sum())
        first, last = int(shard_D[0]), int(shard_D[-1])
        paths = [self.names(split).path(shard) for shard in range(first, last + 1)]
        columns = [
            constant(job.partition.source, len(hashes)),
            constant(split, len(hashes)),
            places.column("file"),
            places.column("locator"),
            labels(paths, shard_D - first),
            *map(numbers, (block_D.astype(np.int32), offset_D.astype(np.int32))),
            *map(numbers, (num_tokens_D, num_prompt_tokens_D, hashes)),
        ]
        self.rows_to_write.append(pa.RecordBatch.from_arrays(columns, schema=_DOCUMENTS_SCHEMA))
        if sum(batch.num_rows for batch in self.rows_to_write) >= _ROWS_OF_A_GROUP:
            self.flush_documents()

    def flush_documents(self) -> None:
        """Write a row group of the table."""
        if self.rows_to_write:
            # Each batch numbers its labels anew.
            self.documents.write_table(pa.Table.from_batches(self.rows_to_write).unify_dictionaries())
            self.rows_to_write = []

    def write_held_out(self) -> UInt64s:
        """Write the held-out documents in the order of their hash; windows of examples, in one that is as random.

        The search gets one half of each shard and comparisons the other, so either half has to be a fair sample of the partition,
        not its beginning or its end.

        Returns:
            The hashes, sorted; those of held-out documents that the sample leaves out are among them, so that what is trained on
            elsewhere does not depend on it.
        """
        hashes: UInt64s = np.sort(
            np.concatenate([np.empty(0, np.uint64), *self.left_out, *(batch.hashes for batch in self.waiting["valid"])])
        )
        if not self.waiting["valid"]:
            return hashes
        if self.job.section.has_mask:
            self.write_packed("valid")
            return hashes
        waiting = _merged(self.waiting["valid"])
        self.waiting["valid"] = []
        order_D = np.argsort(waiting.hashes, kind="stable")  # copies of a document stay in the order of the input
        places = waiting.places.take(numbers(order_D))
        self.write("valid", _reordered(waiting.encoded, order_D), waiting.hashes[order_D], places)
        return hashes


def _merged(batches: list[_WaitingBatch]) -> _WaitingBatch:
    """Batches as one."""
    each = [batch.encoded for batch in batches]
    sizes = np.array([len(encoded.tokens) for encoded in each])
    masks = [encoded.loss_mask for encoded in each if encoded.loss_mask is not None]
    encoded = EncodedDocuments(
        np.concatenate([encoded.tokens for encoded in each]),
        np.concatenate([encoded.ends_D + before for encoded, before in zip(each, np.cumsum(sizes) - sizes, strict=True)]),
        np.concatenate([encoded.num_prompt_tokens_D for encoded in each]),
        np.concatenate(masks) if masks else None,
    )
    places = one_batch([batch.places for batch in batches])
    return _WaitingBatch(encoded, np.concatenate([batch.hashes for batch in batches]), places)


def _reordered(encoded: EncodedDocuments, order_D: Int64s) -> EncodedDocuments:
    """Documents in another order."""
    spans = list(map(slice, encoded.starts_D[order_D].tolist(), encoded.ends_D[order_D].tolist()))
    num_tokens_D = np.diff(encoded.ends_D, prepend=0)[order_D]
    mask = encoded.loss_mask
    return EncodedDocuments(
        np.concatenate([encoded.tokens[span] for span in spans]),
        np.cumsum(num_tokens_D),
        encoded.num_prompt_tokens_D[order_D],
        None if mask is None else np.concatenate([mask[span] for span in spans]),
    )


def run_partition(job: PartitionJob, tell: Callable[[int], None], *, held_out: UInt64s) -> Receipt:
    """Turn one partition into shards.

    Args:
        tell: told of tokens after every batch.
        held_out: sorted hashes of documents of earlier waves' valid splits; training documents among them are dropped.
    Raises:
        InputError: the input is malformed, or changes while it is read.
    """
    # Hashed before it is read: a change in between leaves a receipt that does not match the file, and the partition is done again.
    # The other way round the receipt would vouch for content that was never read.
    files = fingerprint_files(job.partition)
    workdir = Workdir(job.root)
    documents, quarantine = workdir.documents_of(job.partition.label), workdir.quarantine_of(job.partition.label)
    with (
        ExitStack() as until_done,
        atomic_file(documents) as file,
        pq.ParquetWriter(file, _DOCUMENTS_SCHEMA, compression="zstd") as writer,
    ):
        output = _Output(job, writer)
        bad_records = BadRecords(job.section.on_bad_record, lambda: until_done.enter_context(atomic_file(quarantine)))
        num_told = 0
        for batch in read_partition(job.partition, job.section, output.counts, bad_records=bad_records):
            _add_batch(batch, output, held_out, bad_records)
            tell(output.num_tokens - num_told)
            num_told = output.num_tokens
        output.write_packed("train")
        valid_hashes = output.write_held_out()
        tell(output.num_tokens - num_told)
        output.flush_documents()
        rows = [row for split in ("train", "valid") if split in output.streams for row in output.streams[split].close()]
    _require_unchanged(job.partition)
    receipt = Receipt(
        label=job.partition.label,
        fingerprint=job.fingerprint,
        held_out_hash=hash_of_held_out(held_out),
        files=files,
        shards=tuple(rows),
        documents=str(documents.relative_to(workdir.root)),
        counts=asdict(output.counts),
        valid_hashes=encode_hashes(valid_hashes),
        first_bad_record=bad_records.first,
        quarantine=str(quarantine.relative_to(workdir.root)) if bad_records.quarantine is not None else "",
        sample=None if job.thinning is None else output.sample,
    )
    save_receipt(workdir, receipt)
    return receipt


def _add_batch(batch: pa.RecordBatch, output: _Output, held_out: UInt64s, bad_records: BadRecords) -> None:
    """Split and encode one batch; training documents that are held out elsewhere are dropped."""
    job = output.job
    hashes_D = hash_documents(batch)
    if job.partition.origin == "both":
        is_valid_D = is_held_out(hashes_D, job.shards.valid_fraction)
    else:
        is_valid_D = np.full(len(hashes_D), job.partition.origin == "valid")
    # A target's text may stand in a source's training files too: learnt by heart, it would measure nothing.
    is_leaked_D = ~is_valid_D & np.isin(hashes_D, held_out) if len(held_out) else np.zeros(len(hashes_D), np.bool_)
    output.counts.num_leaked_documents += int(is_leaked_D.sum())
    num_bytes_D = np.sum([np.diff(offsets_of(batch.column(name))) for name in column_names(job.section)], axis=0)
    for split, of_split_D in (("train", ~is_valid_D & ~is_leaked_D), ("valid", is_valid_D)):
        chosen_D = (
            of_split_D if job.thinning is None else _in_sample(output, job.thinning, split, of_split_D, hashes_D, num_bytes_D)
        )
        if not chosen_D.any():
            continue
        part = batch if chosen_D.all() else batch.filter(booleans(chosen_D))
        encoded = encode_batch(part, job.encoding, counts=output.counts, lost=output.lost, bad_records=bad_records)
        rows = np.flatnonzero(chosen_D)[encoded.rows]
        if not len(rows):
            continue
        output.counts.num_text_bytes += int(num_bytes_D[rows].sum())
        places = part.select(["file", "locator"]).take(numbers(encoded.rows))
        output.add(split, encoded.documents, hashes_D[rows], places)


def _in_sample(
    output: _Output, thinning: Thinning, split: str, of_split_D: Bools, hashes_D: UInt64s, num_bytes_D: Int64s
) -> Bools:
    """Documents of a split that are in the sample; what is to be known of the others is kept."""
    ranks_D = thinning.ranks(hashes_D)
    in_sample_D: Bools = of_split_D & thinning.is_in(ranks_D, split)
    if split == "train":
        output.sample.add_documents(num_bytes_D[of_split_D], ranks_D[of_split_D], in_sample_D[of_split_D])
    else:
        output.left_out.append(hashes_D[of_split_D & ~in_sample_D])
    return in_sample_D


def _require_unchanged(partition: Partition) -> None:
    """A file that grows while it is read would leave a receipt for something that never existed."""
    for file in partition.files:
        if file.is_remote:
            continue
        status = Path(file.path).stat()
        if (status.st_size, str(status.st_mtime_ns)) != (file.num_bytes, file.version):
            raise InputError(file.name, "changed while it was read", "run the same command again when it is complete")
