"""JSON Lines to documents: a fast way for pieces without surprises, a careful one that explains or counts them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pyarrow as pa

from fastmix_data.errors import InputError
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.files import InputFile
from pipelines.inputs.json_layout import peek
from pipelines.inputs.streams import UTF8_BOM, count_lines, first_line_start, read_pieces
from pipelines.reading.bad_records import BadRecord
from pipelines.reading.bad_text import NOT_UTF8, WRITE_UTF8, decode
from pipelines.reading.documents import Documents, Reading, text_batch
from pipelines.reading.json_values import records_as_lines
from pipelines.reading.record_fields import LARGEST_EXACT, InexactNumber, Number

# Marks of byte order, and a first brace that is two bytes wide.
_UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")
# Python converts no more digits than this to a whole number, to be safe from numbers that take minutes.
_MOST_DIGITS = 4300


def read_json_lines(
    file: InputFile, reading: Reading, *, piece_bytes: int, start: int = 0, stop: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the documents of about `piece_bytes` of lines.

    Locators are `line N` (from 1), or `byte N` in a part of a file, where the number of the line is not known. A .json file may hold
    its records otherwise than one a line: then they are `record N`.

    Args:
        start, stop: for plain files, the byte range whose lines are read: those that start in it; None for the whole file.
    Raises:
        InputError: a line is bad, and the recipe says to stop there; names file and line. Or the file is not UTF-8 at all.
    """
    pieces, unit = record_pieces(file, start=start, stop=stop)
    # In a part of a file the number of a line would take counting all lines before it; its byte is known.
    position = None if stop is None else first_line_start(file.path, start)
    number = 1
    for lines in whole_lines(pieces, piece_bytes):
        places = _Places(file, number, position, unit)
        columns = _parse_fast(lines, reading)
        if columns is not None:
            reading.bad_records.num_seen += len(lines)
            locators = places.locators(lines)
            yield text_batch(columns, files=[file.name] * len(lines), locators=locators, section=reading.section)
        else:
            documents = _parse_carefully(lines, reading, places)
            if documents.locators:
                yield documents.batch()
        number += len(lines)
        if position is not None:
            position += sum(map(len, lines)) + len(lines)


def record_pieces(file: InputFile, *, start: int = 0, stop: int | None = None) -> tuple[Iterator[bytes], str]:
    """The content of a file, one record a line, and what locators count: its lines, or the records of a .json file of another layout."""
    pieces = read_pieces(file.path, name=file.name, kind=file.format, start=start, stop=stop)
    if stop is None and file.format.startswith("json") and not file.format.startswith("jsonl"):
        head, layout = peek(pieces)
        pieces = itertools.chain([head], pieces)
        if layout != "lines":
            return records_as_lines(pieces, name=file.name, is_array=layout == "array"), "record"
    return pieces, "line"


@dataclass(frozen=True)
class _Places:
    """Where the lines of a piece are in their file."""

    file: InputFile
    first_line: int
    first_byte: int | None
    unit: str

    @property
    def is_start(self) -> bool:
        """Whether the file begins here."""
        return self.first_line == 1 and not self.first_byte

    def locators(self, lines: list[bytes]) -> list[str]:
        """One locator for each line."""
        if self.first_byte is None:
            return [f"{self.unit} {number}" for number in range(self.first_line, self.first_line + len(lines))]
        # The line ends that were cut off count too.
        starts = itertools.accumulate((len(line) + 1 for line in lines[:-1]), initial=self.first_byte)
        return [f"byte {start}" for start in starts]

    def message_place(self, index: int, lines: list[bytes]) -> str:
        """`file: line N`; counts the lines before a byte range, which only errors do."""
        number = self.first_line + index
        if self.first_byte is not None:
            before = self.first_byte + sum(map(len, lines[:index])) + index
            number = count_lines(self.file.path, before) + 1
        return f"{self.file.name}: {self.unit} {number}"


def whole_lines(pieces: Iterator[bytes], piece_bytes: int) -> Iterator[list[bytes]]:
    """Cut a stream at line ends into lists of about `piece_bytes`; the last line needs no line end."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        pending.append(piece)
        size += len(piece)
        if size >= piece_bytes and b"\n" in piece:
            lines = b"".join(pending).split(b"\n")
            pending = [lines.pop()]
            size = len(pending[0])
            yield lines
    lines = b"".join(pending).split(b"\n")
    if not lines[-1]:
        lines.pop()
    if lines:
        yield lines


def _parse_fast(lines: list[bytes], reading: Reading) -> list[list[str]] | None:
    """Columns of text if every line is an object that holds what the recipe says; else None."""
    try:
        records = list(map(orjson.loads, lines))
        if reading.plain_keys is not None:
            columns = [[record[key] for record in records] for key in reading.plain_keys]
        else:
            columns = list(map(list, zip(*map(reading.texts_of, records), strict=True)))
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, BadRecord):
        return None
    # Empty texts have to be counted, which is not this way's business. Broken UTF-8 and half surrogate pairs orjson has refused.
    if any(set(map(type, column)) != {str} for column in columns) or not all(columns[-1]):
        return None
    return columns


def _parse_carefully(lines: list[bytes], reading: Reading, places: _Places) -> Documents:
    if places.is_start:
        require_utf8(lines[0], places.file.name)
    documents = Documents(reading)
    for index, (line, locator) in enumerate(zip(lines, places.locators(lines), strict=True)):
        if is_blank(line):
            continue
        documents.add(
            partial(_texts_of_line, line, reading),
            file=places.file.name,
            locator=locator,
            raw=partial(bytes, line),
            place=partial(places.message_place, index, lines),
        )
    return documents


def require_utf8(first: bytes, name: str) -> None:
    """Refuse a file whose first line shows that its characters are two or four bytes wide.

    Raises:
        InputError: names the file.
    """
    if first.startswith(_UTF16_STARTS):
        raise InputError(name, NOT_UTF8, WRITE_UTF8)


def _texts_of_line(line: bytes, reading: Reading) -> tuple[list[str], bool]:
    record, was_bad = load_line(line, reading.section)
    try:
        return reading.texts_of(record), was_bad
    except InexactNumber:
        return reading.texts_of(_load_exactly(decode(line.removeprefix(UTF8_BOM), reading.section)[0])), was_bad


def is_blank(line: bytes) -> bool:
    """Whether there is nothing on a line; a mark of byte order is nothing."""
    return not line.removeprefix(UTF8_BOM).strip()


def load_line(line: bytes, section: TextSection) -> tuple[Any, bool]:
    """The value of a line, and whether broken UTF-8 was replaced in it. Of a key that is given twice, the last value counts.

    Raises:
        BadRecord: it is not JSON.
    """
    line = line.removeprefix(UTF8_BOM)
    try:
        return orjson.loads(line), False
    except orjson.JSONDecodeError as error:
        problem = error
    text, was_bad = decode(line, section)
    try:
        return _load_exactly(text), was_bad  # also reads NaN and lone surrogates, which orjson refuses
    except json.JSONDecodeError as error:
        raise BadRecord(*_explained(error, problem)) from problem


def _load_exactly(text: str) -> Any:
    def not_finite(name: str) -> Number:
        return Number(name, is_finite=False)

    try:
        return json.loads(text, parse_int=_whole_number, parse_float=_float, parse_constant=not_finite)
    except RecursionError as error:
        raise BadRecord("nested too deep to be read (about 1,000 levels)") from error


def _whole_number(digits: str) -> int | Number:
    return int(digits) if len(digits) <= _MOST_DIGITS else Number(digits)


def _float(written: str) -> float | Number:
    value = float(written)
    return value if math.isfinite(value) and abs(value) < LARGEST_EXACT else Number(written)


def _explained(error: json.JSONDecodeError, problem: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong with a line, and its remedy."""
    rest = error.doc[error.pos :].lstrip() if error.msg == "Extra data" else ""
    if rest.startswith(("{", "[")):
        return "holds more than one JSON value", "write one object a line; a line ends with \\n"
    if rest == ",":
        return "a comma follows the JSON value", "write one object a line, with no list around them"
    return f"not valid JSON ({problem.msg} at column {problem.colno})", "fix or remove the line"
