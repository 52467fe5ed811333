"""Reading documents: any supported format to Arrow batches of bounded size.

A batch has the columns `text`, or `prompt` and `completion`, and with them `file` (the name that messages use) and `locator`
(where in that file: `line 12`, `byte 1234`, `row 4` or `file`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastmix_data.arrow_arrays import constant, labels, strings
from fastmix_data.errors import InputError
from fastmix_data.messages import first_line
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.columns import holds_text, not_text
from pipelines.inputs.files import InputFile
from pipelines.inputs.hub_datasets import read_dataset_shard
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
    elif partition.files[0].format == "txt":
        yield from _read_texts(partition.files, section, counts, batch_bytes)
    elif partition.files[0].format == "parquet":
        yield from _read_parquet(partition, section, counts, batch_bytes)
    else:
        file = partition.files[0]
        for columns, locators in read_json_lines(
            file,
            section=section,
            counts=counts,
            piece_bytes=batch_bytes,
            start=partition.start,
            stop=None if partition.is_whole_file else partition.stop,
        ):
            yield _text_batch(columns, locators, [file.name] * len(locators), section)


def _read_texts(
    files: Sequence[InputFile], section: TextSection, counts: DocumentCounts, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    texts: list[str] = []
    names: list[str] = []
    size = 0
    for file in files:
        with open_binary(file.path) as stream:
            content = stream.read().removeprefix(_UTF8_BOM)
        if not content:
            counts.num_empty += 1
            continue
        text, was_bad = decode(content, section, partial(_line_of, content, file.name))
        counts.num_bad_text += was_bad
        texts.append(text)
        names.append(file.name)
        size += len(content)
        if size >= batch_bytes:
            yield _text_batch([texts], ["file"] * len(texts), names, section)
            texts, names, size = [], [], 0
    if texts:
        yield _text_batch([texts], ["file"] * len(texts), names, section)


def _line_of(content: bytes, name: str, position: int) -> str:
    num_before = content.count(b"\n", 0, position)
    return f"{name}: line {num_before + 1}"


def _read_parquet(
    partition: Partition, section: TextSection, counts: DocumentCounts, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    file = partition.files[0]
    groups = range(partition.start, partition.stop)
    keys = list(section.text_keys)
    try:
        with open_binary(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            row = sum(parquet.metadata.row_group(number).num_rows for number in range(partition.start))
            num_rows = sum(parquet.metadata.row_group(number).num_rows for number in groups)
            # Arrow counts a batch in rows; as many as hold `batch_bytes` if all are of average length. `_from_table` cuts where not.
            batch_rows = max(1, min(_MAX_ROWS_OF_A_BATCH, num_rows * batch_bytes // max(partition.num_bytes, 1)))
            for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=list(groups), columns=keys):
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
    where = f"sources.{partition.source}"
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
