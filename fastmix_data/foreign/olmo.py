"""OLMo-core's token files: raw tokens without a header, whatever their ending; a mask in a file of its own; documents in a `.csv.gz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from fastmix_data.errors import InputError
from fastmix_data.foreign.foreign_file import ForeignFile, NumBefore, flat_file
from fastmix_data.messages import first_line


def olmo_file(path: Path, *, name: str, where: str, dtype: str, mask: Path | None) -> ForeignFile:
    """A token file.

    Raises:
        InputError: it cannot be one, its mask is not as long, or the table of documents beside it cannot be read.
    """
    # `part-0.npy` has its documents in `part-0.csv.gz`.
    table = path.with_suffix(".csv.gz")
    has_table = table.is_file()
    documents = _documents_before(table, where=where) if has_table else None
    beside = (table,) if has_table else ()
    return flat_file(path, name=name, where=where, dtype=dtype, mask=mask, beside=beside, documents_before=documents)


def _documents_before(table: Path, *, where: str) -> NumBefore:
    # Rows are `start,end,id,src,loc`, without a header. The file is compressed as a whole, so it is read as a whole: once, when asked.
    starts: list[np.ndarray] = []

    def before(token: int) -> int:
        if not starts:
            starts.append(np.sort(_read_starts(table, where=where)))
        return int(np.searchsorted(starts[0], token))

    return before


def _read_starts(table: Path, *, where: str) -> np.ndarray:
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
