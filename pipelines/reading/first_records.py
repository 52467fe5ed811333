"""The first records of a file as they are, for whoever has to find out what is in it; by the readers that preprocessing uses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.errors import InputError
from fastmix_data.messages import first_line
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.files import InputFile
from pipelines.inputs.streams import open_binary
from pipelines.reading.bad_records import BadRecord
from pipelines.reading.json_lines import is_blank, load_line, record_pieces, require_utf8, whole_lines
from pipelines.reading.tables import records_of

_PIECE_BYTES = 1 << 16
_ANY_TEXT = TextSection()


def first_records(file: InputFile, limit: int) -> list[dict[str, Any]]:
    """At most `limit` records from the start of a file; a text file has none, as it has no keys.

    What cannot be read as a record is passed over while others are there: one bad line does not hide what the rest is like.

    Raises:
        InputError: the file is damaged, or the first `limit` of its records are all bad; names the first.
    """
    if file.format == "txt":
        return []
    return _of_parquet(file, limit) if file.format == "parquet" else _of_json_lines(file, limit)


def _of_parquet(file: InputFile, limit: int) -> list[dict[str, Any]]:
    try:
        with open_binary(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            names = parquet.schema_arrow.names
            # Two columns of a name cannot be told apart, and are refused when one of them is asked for.
            columns = [name for name in dict.fromkeys(names) if names.count(name) == 1]
            batches = parquet.iter_batches(batch_size=limit, columns=columns)
            return next((records_of(pa.Table.from_batches([batch])) for batch in batches), [])
    except (pa.ArrowException, OSError) as error:
        raise InputError(file.name, f"not a readable Parquet file ({first_line(error)})", "write or download it again") from error


def _of_json_lines(file: InputFile, limit: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    fault: InputError | None = None
    for number, line in islice(_lines(file), limit):
        place = f"{file.name}: line {number}"
        try:
            record, _ = load_line(line, _ANY_TEXT)
        except BadRecord as error:
            fault = fault or InputError(place, error.problem, error.remedy)
            continue
        if isinstance(record, dict):
            records.append(record)
        else:
            fault = fault or InputError(place, "not a JSON object", "write one object with keys a line")
    if fault is not None and not records:
        raise fault
    return records


def _lines(file: InputFile) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers."""
    pieces = whole_lines(record_pieces(file)[0], _PIECE_BYTES)
    for number, line in enumerate(chain.from_iterable(pieces), 1):
        if number == 1:
            require_utf8(line, file.name)
        if not is_blank(line):
            yield number, line
