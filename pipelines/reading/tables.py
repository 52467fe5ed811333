"""Tables to documents: Parquet files and datasets. Whole columns at once where they are plain text, else row by row."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastmix_data.arrow_arrays import constant, strings
from fastmix_data.errors import InputError
from fastmix_data.messages import first_line
from pipelines.inputs.columns import holds_json, is_json, stored_type
from pipelines.inputs.files import InputFile
from pipelines.inputs.hub_datasets import DatasetInput, read_dataset_shard
from pipelines.inputs.parquet_ranges import check_parquet
from pipelines.inputs.partitions import Partition
from pipelines.inputs.streams import open_binary
from pipelines.reading.bad_records import BadRecord
from pipelines.reading.bad_text import decode
from pipelines.reading.documents import Documents, Reading, column_names
from pipelines.reading.record_fields import LARGEST_EXACT, Number

_MAX_ROWS_OF_A_BATCH = 65_536


def read_parquet(file: InputFile, partition: Partition, reading: Reading, *, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield the documents of a Parquet file of a partition, or of the row groups of it that the partition is.

    Raises:
        InputError: the data is damaged, or a column is not what the recipe says.
    """
    try:
        with open_binary(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            columns = check_parquet(file, parquet, section=reading.section, where=partition.where)
            start, stop = 0, parquet.metadata.num_row_groups
            if partition.is_part_of_file:
                start, stop = partition.start, partition.stop
            groups = [parquet.metadata.row_group(number) for number in range(stop)]
            row, num_rows = (sum(group.num_rows for group in some) for some in (groups[:start], groups[start:]))
            num_bytes = partition.num_bytes if len(partition.files) == 1 else sum(group.total_byte_size for group in groups)
            # Arrow counts a batch in rows; as many as hold `batch_bytes` if all are of average length. `_read_table` cuts where not.
            batch_rows = max(1, min(_MAX_ROWS_OF_A_BATCH, num_rows * batch_bytes // max(num_bytes, 1)))
            for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=list(range(start, stop)), columns=columns):
                table = pa.Table.from_batches([batch]).select(columns)
                yield from _read_table(table, reading, name=file.name, first_row=row, batch_bytes=batch_bytes)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(file.name, f"damaged Parquet data ({first_line(error)})", "write or download it again") from error


def read_dataset(
    dataset: DatasetInput, reading: Reading, *, where: str, shard: int, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Yield the documents of a shard of a dataset.

    Raises:
        InputError: it cannot be read, or a column is not what the recipe says.
    """
    name = dataset.name
    if dataset.kind == "streamed" and dataset.num_shards > 1:
        name = f"{dataset.name} shard {shard}"
    for first_row, table in read_dataset_shard(dataset, shard, section=reading.section, where=where):
        yield from _read_table(table, reading, name=name, first_row=first_row, batch_bytes=batch_bytes)


def _read_table(table: pa.Table, reading: Reading, *, name: str, first_row: int, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Documents of a table, cut so that a batch is not much over `batch_bytes`."""
    # Readers cut by number of rows, so only rows of very uneven length make a table that has to be cut again.
    num_parts = max(1, min(table.num_rows, -(-table.nbytes // (2 * batch_bytes))))
    for part in range(num_parts):
        start, stop = (number * table.num_rows // num_parts for number in (part, part + 1))
        rows, first = table.slice(start, stop - start), first_row + start
        batch = _read_columns(rows, reading, name=name, first_row=first)
        if batch is None:
            batch = _read_rows(rows, reading, name=name, first_row=first).batch()
        if batch.num_rows:
            yield batch


def _read_columns(rows: pa.Table, reading: Reading, *, name: str, first_row: int) -> pa.RecordBatch | None:
    """A batch of the rows with text, if all columns are plain and valid UTF-8; else None."""
    keys = reading.section.text_keys
    if reading.section.messages is not None or not set(keys) <= set(rows.column_names):
        return None
    if any(is_json(rows.schema.field(key).type) for key in keys):
        return None
    try:
        columns = [_text_column(rows.column(key)) for key in keys]
    except pa.ArrowInvalid:
        return None
    reading.bad_records.num_seen += len(rows)
    # A completion without a prompt has loss, a prompt without a completion none.
    has_text = pc.greater(pc.binary_length(columns[-1]), 0)
    locators = strings([f"row {number}" for number in range(first_row, first_row + len(rows))])
    names = [*column_names(reading.section), "file", "locator"]
    batch = pa.RecordBatch.from_arrays([*columns, constant(name, len(rows)), locators], names=names).filter(has_text)
    reading.counts.num_empty += len(rows) - batch.num_rows
    return batch


def _text_column(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, null as empty; raises ArrowInvalid where it is broken UTF-8, also in what calls itself a string."""
    as_bytes = pc.fill_null(column.cast(stored_type(column.type)).cast(pa.large_binary()), b"").combine_chunks()
    array = as_bytes.chunk(0) if isinstance(as_bytes, pa.ChunkedArray) else as_bytes
    return array.cast(pa.large_string())


def _read_rows(rows: pa.Table, reading: Reading, *, name: str, first_row: int) -> Documents:
    documents = Documents(reading)
    kind = pa.struct(list(rows.schema))
    for number, record in enumerate(_raw_records(rows), first_row):
        documents.add(
            partial(_texts_of_row, record, kind, reading), file=name, locator=f"row {number}", raw=partial(_raw_of, record)
        )
    return documents


def _texts_of_row(record: dict[str, Any], kind: pa.DataType, reading: Reading) -> tuple[list[str], bool]:
    was_bad = False

    def text(content: bytes) -> str:
        nonlocal was_bad
        decoded, is_bad = decode(content, reading.section)
        was_bad |= is_bad
        return decoded

    texts = reading.texts_of(_as_json(_parsed(record, kind), text), nulls_are_absent=True)
    return texts, was_bad


def records_of(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON would hold them, but those that are bad; broken UTF-8 is replaced."""
    kind = pa.struct(list(rows.schema))
    records = []
    for record in _raw_records(rows):
        with suppress(BadRecord):
            records.append(_as_json(_parsed(record, kind), partial(bytes.decode, errors="replace")))
    return records


def _raw_records(rows: pa.Table) -> Iterator[dict[str, Any]]:
    cells = [_cells(rows.column(key)) for key in rows.column_names]
    return (dict(zip(rows.column_names, values, strict=True)) for values in zip(*cells, strict=True))


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """Python values of a column; text as bytes if any of it is broken, which Arrow's own conversion stumbles over."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return list(column.cast(_with_bytes(column.type)).to_pylist())


def _parsed(value: Any, kind: pa.DataType) -> Any:
    """The value with what is JSON text in it read."""
    if value is None or not holds_json(kind):
        return value
    if is_json(kind):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise BadRecord(f"not valid JSON ({error.msg} at column {error.colno})") from error
    if isinstance(value, dict):
        return {name: _parsed(inner, kind.field(name).type) for name, inner in value.items()}
    return [_parsed(inner, kind.value_type) for inner in value] if isinstance(value, list) else value


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes for text, at any depth."""
    kind = stored_type(kind)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_bytes(field.type)) for field in map(kind.field, range(kind.num_fields))])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_with_bytes(kind.value_type))
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return pa.large_binary() if is_text else kind


def _as_json(value: Any, decoded: Callable[[bytes], str]) -> Any:
    """The value as JSON would hold it."""
    if isinstance(value, bytes):
        return decoded(value)
    if isinstance(value, dict):
        return {name: _as_json(inner, decoded) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner, decoded) for inner in value]
    if isinstance(value, float) and not (math.isfinite(value) and abs(value) < LARGEST_EXACT):
        return Number(repr(value), is_finite=math.isfinite(value))
    return value


def _raw_of(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, default=_described)


def _described(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)
