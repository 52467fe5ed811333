"""OLMo-core's token files: raw tokens without a header, whatever their ending; a mask in a file of its own; documents in a `.csv.gz`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from fastmix_data.arrays import Int64s
from fastmix_data.errors import InputError
from fastmix_data.foreign.foreign_file import ForeignFile, flat_file
from fastmix_data.messages import first_line


def olmo_file(path: Path, *, name: str, where: str, dtype: str, mask: Path | None) -> ForeignFile:
    """A token file.

    Raises:
        InputError: it cannot be one, its mask is not as long, or the table of documents beside it cannot be read.
    """
    table = documents_table(path)
    has_table = table.is_file()
    documents = OlmoDocuments(table, where=where) if has_table else None
    return flat_file(
        path, name=name, where=where, dtype=dtype, mask=mask, beside=(table,) if has_table else (), documents=documents
    )


def documents_table(path: Path) -> Path:
    """Where the documents of a token file would be: those of `part-0.npy` in `part-0.csv.gz`."""
    return path.with_suffix(".csv.gz")


class OlmoDocuments:
    """Documents of a `.csv.gz`, which is compressed as a whole, so it is read as a whole: once, when asked."""

    def __init__(self, table: Path, *, where: str) -> None:
        """Name it; reading raises InputError, about `where`."""
        self._table, self._where = table, where

    def before(self, token: int) -> int:
        """See `DocumentStarts`."""
        return int(np.searchsorted(self._start_D, token))

    def starts(self, first: int, stop: int) -> Int64s:
        """See `DocumentStarts`."""
        return self._start_D[first:stop]

    @cached_property
    def _start_D(self) -> Int64s:
        # Rows are `start,end,id,src,loc`, without a header.
        return np.sort(_read_starts(self._table, where=self._where))


def _read_starts(table: Path, *, where: str) -> Int64s:
    try:
        with pa.input_stream(str(table)) as stream:
            batches = csv.open_csv(
                stream,
                read_options=csv.ReadOptions(autogenerate_column_names=True),
                convert_options=csv.ConvertOptions(include_columns=["f0"], column_types={"f0": pa.int64()}),
            )
            return np.concatenate([np.empty(0, np.int64), *(batch.column(0).to_numpy() for batch in batches)])
    except (pa.ArrowInvalid, OSError) as error:
        problem = f"{table.name}, which should list documents, cannot be read ({first_line(error)})"
        raise InputError(where, problem, "take it away, or write it again") from error
