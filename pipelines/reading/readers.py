"""Reading documents: any supported format to Arrow batches of bounded size.

A batch has the columns `text`, or `prompt` and `completion`, and with them `file` (the name that messages use) and `locator`
(where in that file: `line 12`, `byte 1234`, `row 4` or `file`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastmix_data.arrow_arrays import constant, labels, strings
from fastmix_data.errors import InputError
from fastmix_data.git.pointers import require_no_pointer_in
from fastmix_data.messages import first_line
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.columns import holds_text, not_text
from pipelines.inputs.files import InputFile
from pipelines.inputs.hub_datasets import read_dataset_shard
from pipelines.inputs.parquet_ranges import check_parquet
from pipelines.inputs.partitions import Partition
from pipelines.inputs.streams import open_binary
from pipelines.reading.bad_text import DocumentCounts, decode
from pipelines.reading.json_lines import read_json_lines

# Small enough that its copies stay in the processor cache and in memory the allocator already has.
BATCH_BYTES = 1 << 20
_MAX_ROWS_OF_A_BATCH = 65_536
_UTF8_BOM = b"\xef\xbb\xbf"


def _text_batch(
    columns: Sequence[Sequence[str]], locators: Sequence[str], files: Sequence[str], section: TextSection
) -> pa.RecordBatch:
    names = [*column_names(section), "file", "locator"]
    return pa.RecordBatch.from_arrays([*map(strings, columns), _file_column(files), strings(locators)], names=names)


def _file_column(files: Sequence[str]) -> pa.DictionaryArray:
    names = list(dict.fromkeys(files))
    number_of = {name: number for number, name in enumerate(names)}
    return labels(names, np.fromiter(map(number_of.__getitem__, files), np.int32, len(files)))


def column_names(section: TextSection) -> tuple[str, ...]:
    """Names of the text columns of a section's batches."""
    return ("prompt", "completion") if section.has_mask else ("text",)


def read_partition(
    partition: Partition, section: TextSection, counts: DocumentCounts, *, batch_bytes: int = BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield a partition's documents; those without text are left out and counted.

    Args:
        counts: what was replaced or left out is added to it.
        batch_bytes: aimed-at bytes of text in a batch; one document is never cut.
    Raises:
        InputError: the input is malformed; names file and line.
    """
    if partition.dataset is not None:
        yield from _read_dataset(partition, section, counts, batch_bytes)
    elif len(partition.files) == 1:
        yield from _read_file(partition.files[0], partition, section, counts, batch_bytes)
    else:
        # A batch for each of many small files would cost more than their text.
        batches = (_read_file(file, partition, section, counts, batch_bytes) for file in partition.files)
        yield from _merge(itertools.chain.from_iterable(batches), batch_bytes)


def _read_file(
    file: InputFile, partition: Partition, section: TextSection, counts: DocumentCounts, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Documents of one file of a partition."""
    if file.format == "txt":
        yield from _read_text(file, partition, section, counts)
    elif file.format == "parquet":
        yield from _read_parquet(file, partition, section, counts, batch_bytes)
    else:
        is_any, num_empty = False, counts.num_empty
        start, stop = (partition.start, partition.stop) if partition.is_part_of_file else (0, None)
        for columns, locators in read_json_lines(
            file, section=section, counts=counts, piece_bytes=batch_bytes, start=start, stop=stop
        ):
            is_any = True
            yield _text_batch(columns, locators, [file.name] * len(locators), section)
        # Only blank lines. A part of a file may well have none of its own: all of it lies inside one long line.
        if stop is None and not is_any and counts.num_empty == num_empty:
            raise InputError(partition.where, f"{file.name} holds no document", "remove it or fill it")


def _merge(batches: Iterator[pa.RecordBatch], batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Batches of about `batch_bytes`, whatever the size of the given ones."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        pending.append(batch)
        size += batch.nbytes
        if size >= batch_bytes:
            yield _merged(pending)
            pending, size = [], 0
    if pending:
        yield _merged(pending)


def _merged(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    # Each batch numbers its file names anew.
    return pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()[0]


def _read_text(file: InputFile, partition: Partition, section: TextSection, counts: DocumentCounts) -> Iterator[pa.RecordBatch]:
    with open_binary(file.path) as stream:
        content = stream.read().removeprefix(_UTF8_BOM)
    if not content:
        counts.num_empty += 1
        return
    if file.is_remote:
        # On this machine the plan has looked.
        require_no_pointer_in(content, where=partition.where, name=file.name)
    text, was_bad = decode(content, section, partial(_line_of, content, file.name))
    counts.num_bad_text += was_bad
    yield _text_batch([[text]], ["file"], [file.name], section)


def _line_of(content: bytes, name: str, position: int) -> str:
    num_before = content.count(b"\n", 0, position)
    return f"{name}: line {num_before + 1}"


def _read_parquet(
    file: InputFile, partition: Partition, section: TextSection, counts: DocumentCounts, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    keys = list(section.text_keys)
    try:
        with open_binary(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            check_parquet(file, parquet, keys=keys, where=partition.where)
            start, stop = 0, parquet.metadata.num_row_groups
            if partition.is_part_of_file:
                start, stop = partition.start, partition.stop
            groups = [parquet.metadata.row_group(number) for number in range(stop)]
            row, num_rows = (sum(group.num_rows for group in some) for some in (groups[:start], groups[start:]))
            # Arrow counts a batch in rows; as many as hold `batch_bytes` if all are of average length. `_from_table` cuts where not.
            num_bytes = max(
                1, partition.num_bytes if len(partition.files) == 1 else sum(group.total_byte_size for group in groups)
            )
            batch_rows = max(1, min(_MAX_ROWS_OF_A_BATCH, num_rows * batch_bytes // num_bytes))
            for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=list(range(start, stop)), columns=keys):
                table = pa.Table.from_batches([batch]).select(keys)
                yield from _from_table(table, section, counts, name=file.name, first_row=row, batch_bytes=batch_bytes)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(file.name, f"damaged Parquet data ({first_line(error)})", "write or download it again") from error


def _read_dataset(
    partition: Partition, section: TextSection, counts: DocumentCounts, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    dataset = partition.dataset
    assert dataset is not None
    where = partition.where
    name = dataset.name
    if dataset.kind == "streamed" and dataset.num_shards > 1:
        name = f"{dataset.name} shard {partition.start}"
    for first_row, table in read_dataset_shard(dataset, partition.start, columns=section.text_keys, where=where):
        yield from _from_table(table, section, counts, name=name, first_row=first_row, batch_bytes=batch_bytes)


def _from_table(
    table: pa.Table, section: TextSection, counts: DocumentCounts, *, name: str, first_row: int, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Columns of text, cleaned: no null, no empty text, valid UTF-8; cut so that a batch is not much over `batch_bytes`."""
    # Readers cut by number of rows, so only rows of very uneven length make a table that has to be cut again.
    num_parts = max(1, min(table.num_rows, -(-table.nbytes // (2 * batch_bytes))))
    for part in range(num_parts):
        start, stop = (number * table.num_rows // num_parts for number in (part, part + 1))
        rows = table.slice(start, stop - start)
        bad_rows: set[int] = set()
        columns = [
            _clean_column(rows.column(key), section, name=name, key=key, first_row=first_row + start, bad_rows=bad_rows)
            for key in section.text_keys
        ]
        counts.num_bad_text += len(bad_rows)
        # A completion without a prompt has loss, a prompt without a completion none.
        has_text = pc.greater(pc.binary_length(columns[-1]), 0)
        places = [
            constant(name, len(rows)),
            strings([f"row {number}" for number in range(first_row + start, first_row + stop)]),
        ]
        batch = pa.RecordBatch.from_arrays([*columns, *places], names=[*column_names(section), "file", "locator"])
        kept = batch.filter(has_text)
        counts.num_empty += batch.num_rows - kept.num_rows
        if kept.num_rows:
            yield kept


def _clean_column(
    column: pa.ChunkedArray, section: TextSection, *, name: str, key: str, first_row: int, bad_rows: set[int]
) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not holds_text(column.type) and not pa.types.is_null(column.type):
        raise not_text(name, key, column.type)
    as_bytes = pc.fill_null(column.cast(pa.large_binary()), b"").combine_chunks()
    array = as_bytes.chunk(0) if isinstance(as_bytes, pa.ChunkedArray) else as_bytes
    try:
        return array.cast(pa.large_string())  # checks the UTF-8, also of what calls itself a string
    except pa.ArrowInvalid:
        pass
    texts: list[str] = []
    for row, cell in enumerate(array, first_row):
        text, was_bad = decode(cell.as_py(), section, partial(_row_of, name, row))
        texts.append(text)
        if was_bad:
            bad_rows.add(row)  # a set: a row whose prompt and completion are both broken is one document
    return strings(texts)


def _row_of(name: str, row: int, position: int) -> str:
    del position
    return f"{name}: row {row}"
