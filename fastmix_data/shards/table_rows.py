"""Rows of a table as dataclasses that are made when they are asked for: of a million rows, objects would take a gigabyte and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastmix_data.arrays import Int64s
from fastmix_data.arrow_arrays import booleans, numbers, strings, values_of

Row = TypeVar("Row")
_ROWS_AT_ONCE = 1 << 14
_ARROW_TYPES = {"str": pa.string(), "int": pa.int64(), "bool": pa.bool_()}


def schema_of(kind: type[Any]) -> pa.Schema:
    """Columns for a dataclass of texts, whole numbers and truth values."""
    return pa.schema([pa.field(f.name, _ARROW_TYPES[str(f.type)], nullable=False) for f in fields(kind)])


class TableRows(Sequence[Row]):
    """An Arrow table with a column for each field of a dataclass, as a sequence of these.

    Attributes:
        table: in one piece.
    """

    def __init__(self, table: pa.Table, kind: type[Row]) -> None:
        """Columns that the table lacks have the field's default in every row."""
        for field in fields(kind):  # type: ignore[arg-type]
            if field.name not in table.column_names and field.default is not MISSING:
                column = pa.repeat(pa.scalar(field.default, _ARROW_TYPES[str(field.type)]), len(table))
                table = table.append_column(field.name, column)
        self.table: pa.Table = table.select(schema_of(kind).names).combine_chunks()
        self._kind = kind

    @classmethod
    def of(cls, kind: type[Row], rows: Iterable[Row]) -> TableRows[Row]:
        """Take rows in as they come, so that no more than some thousands of them are there at once."""
        if isinstance(rows, cls):
            return rows
        schema = schema_of(kind)
        values_of_row, left = attrgetter(*schema.names), iter(rows)
        batches = []
        while some := list(islice(left, _ROWS_AT_ONCE)):
            columns = zip(*map(values_of_row, some), strict=True)
            arrays = [_array(column, type_) for column, type_ in zip(columns, schema.types, strict=True)]
            batches.append(pa.record_batch(arrays, schema=schema))
        return cls(pa.Table.from_batches(batches, schema), kind)

    @classmethod
    def read(cls, path: Path, kind: type[Row]) -> TableRows[Row]:
        """Rows of a Parquet file. The metadata of its schema are kept with the table."""
        # `pq.read_table` imports pandas, half a second.
        with pq.ParquetFile(path) as file:
            return cls(file.read(), kind)

    def __reduce__(self) -> tuple[Any, ...]:
        """Columns travel, not rows."""
        return type(self), (self.table, self._kind)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        """A row, or some of them as a tuple."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return tuple(TableRows(self.table.slice(start, max(stop - start, 0)), self._kind))
            return tuple(self[number] for number in range(start, stop, step))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._kind(*(column[index].as_py() for column in self.table.itercolumns()))

    def __iter__(self) -> Iterator[Row]:
        """All rows in order, some thousands at a time."""
        for batch in self.table.to_batches(_ROWS_AT_ONCE):
            yield from map(self._kind, *(column.to_pylist() for column in batch.columns))

    def __eq__(self, other: object) -> bool:
        """Whether the rows are the same."""
        if isinstance(other, TableRows):
            return bool(self.table.equals(other.table))
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(lambda a, b: a == b, self, other))

    __hash__ = None  # type: ignore[assignment]

    def part(self, numbers_N: Int64s) -> TableRows[Row]:
        """Some of the rows, by ascending numbers; without a copy if they are neighbours."""
        first, stop = int(numbers_N[0]), int(numbers_N[-1]) + 1
        if stop - first == len(numbers_N):
            return TableRows(self.table.slice(first, len(numbers_N)), self._kind)
        return TableRows(self.table.take(numbers(numbers_N)), self._kind)


def _array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_string(type_):
        return strings(values).cast(type_)
    return booleans(np.array(values)) if pa.types.is_boolean(type_) else numbers(np.array(values, np.int64))


def _in_one(column: pa.ChunkedArray) -> pa.Array:
    # A table without rows may be without a piece.
    return column.chunk(0) if column.num_chunks else column.combine_chunks()


def column_of(rows: TableRows[Any], name: str) -> npt.NDArray[Any]:
    """A field of all rows: whole numbers or truth values, shape (N,)."""
    return values_of(_in_one(rows.table.column(name)))


def distinct(rows: TableRows[Any], name: str) -> list[Any]:
    """The different values of a field, in the order in which they come up."""
    values: list[Any] = pc.unique(rows.table.column(name)).to_pylist()
    return values


def num_distinct(rows: TableRows[Any], name: str, *, among_N: Int64s) -> int:
    """How many different values a field has in the rows of these numbers."""
    return int(pc.count_distinct(rows.table.column(name).take(numbers(among_N))).as_py())


def places_of(rows: TableRows[Any], name: str, *, among: Sequence[str]) -> Int64s:
    """Where each row's field stands in a list of names that has it, shape (N,)."""
    found = pc.index_in(_in_one(rows.table.column(name)), strings(among).cast(pa.string()))
    return values_of(found).astype(np.int64)
