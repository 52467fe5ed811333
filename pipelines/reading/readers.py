"""Reading documents: any supported format to Arrow batches of bounded size.

A batch has the columns `text`, or `prompt` and `completion`, or `messages` (JSON text, see `conversations.py`), and with them `file`
(the name that messages use) and `locator` (where in that file: `line 12`, `record 12`, `byte 1234`, `row 4` or `file`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial

import pyarrow as pa

from fastmix_data.arrow_arrays import one_batch
from fastmix_data.errors import InputError
from fastmix_data.git.pointers import require_no_pointer_in
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.files import InputFile
from pipelines.inputs.partitions import Partition
from pipelines.inputs.streams import UTF8_BOM, open_binary
from pipelines.reading.bad_records import BadRecord, BadRecords
from pipelines.reading.bad_text import NOT_UTF8, WRITE_UTF8, DocumentCounts, decode
from pipelines.reading.documents import Documents, Reading
from pipelines.reading.json_lines import read_json_lines
from pipelines.reading.tables import read_dataset, read_parquet

# Small enough that its copies stay in the processor cache and in memory the allocator already has.
BATCH_BYTES = 1 << 20
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def read_partition(
    partition: Partition,
    section: TextSection,
    counts: DocumentCounts,
    *,
    batch_bytes: int = BATCH_BYTES,
    bad_records: BadRecords | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield a partition's documents; those without text are left out and counted.

    Args:
        counts: what was replaced or left out is added to it.
        batch_bytes: aimed-at bytes of text in a batch; one document is never cut.
        bad_records: what to do with bad records; as the section says, and keeping none, when not given.
    Raises:
        InputError: the input is malformed; names file and line.
    """
    reading = Reading(section, counts, bad_records or BadRecords(section.on_bad_record))
    if partition.dataset is not None:
        yield from read_dataset(partition.dataset, reading, where=partition.where, shard=partition.start, batch_bytes=batch_bytes)
    else:
        yield from _read_files(partition, reading, batch_bytes)


def _read_files(partition: Partition, reading: Reading, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Documents of a large file, or of many small ones, in their order."""
    # A batch for each of many small files would cost more than their text.
    runs = itertools.groupby(partition.files, lambda file: file.format == "txt")
    batches = (
        _read_texts(files, partition, reading, batch_bytes)
        if are_texts
        else itertools.chain.from_iterable(_read_file(file, partition, reading, batch_bytes) for file in files)
        for are_texts, files in runs
    )
    chained = itertools.chain.from_iterable(batches)
    yield from chained if len(partition.files) == 1 else _merge(chained, batch_bytes)


def _read_file(file: InputFile, partition: Partition, reading: Reading, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Documents of one file of records of a partition, or of the part of it that the partition is."""
    if file.format == "parquet":
        yield from read_parquet(file, partition, reading, batch_bytes=batch_bytes)
    else:
        start, stop = (partition.start, partition.stop) if partition.is_part_of_file else (0, None)
        num_seen = reading.bad_records.num_seen
        yield from read_json_lines(file, reading, piece_bytes=batch_bytes, start=start, stop=stop)
        # Only blank lines. A part of a file may well have none of its own: all of it lies inside one long line.
        if stop is None and reading.bad_records.num_seen == num_seen:
            raise InputError(partition.where, f"{file.name} holds no document", "remove it or fill it")


def _merge(batches: Iterator[pa.RecordBatch], batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Batches of about `batch_bytes`, whatever the size of the given ones."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        pending.append(batch)
        size += batch.nbytes
        if size >= batch_bytes:
            yield one_batch(pending)
            pending, size = [], 0
    if pending:
        yield one_batch(pending)


def _read_texts(files: Iterable[InputFile], partition: Partition, reading: Reading, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    documents, size = Documents(reading), 0
    for file in files:
        with open_binary(file.path) as stream:
            content = stream.read()
        if file.is_remote:
            # On this machine the plan has looked.
            require_no_pointer_in(content, where=partition.where, name=file.name)
        documents.add(
            partial(_text_of, content, reading.section),
            file=file.name,
            locator="file",
            raw=partial(bytes, content),
            place=partial(_line_of_fault, content, file.name),
        )
        size += len(content)
        if size >= batch_bytes:
            if documents.locators:
                yield documents.batch()
            documents, size = Documents(reading), 0
    if documents.locators:
        yield documents.batch()


def _text_of(content: bytes, section: TextSection) -> tuple[list[str], bool]:
    if content.startswith(_UTF16_BOMS):
        raise BadRecord(NOT_UTF8, WRITE_UTF8)
    text, was_bad = decode(content.removeprefix(UTF8_BOM), section)
    return [text], was_bad


def _line_of_fault(content: bytes, name: str) -> str:
    """Place of the first byte that is not UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        num_before = content.count(b"\n", 0, error.start)
        return f"{name}: line {num_before + 1}"
    return name
