"""JSON Lines to columns of text: a fast way for pieces without surprises, a careful one that explains or counts them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from fastmix_data.errors import InputError
from fastmix_data.messages import first_line
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.columns import missing_key
from pipelines.inputs.files import InputFile
from pipelines.inputs.json_layout import peek
from pipelines.inputs.streams import count_lines, first_line_start, read_pieces
from pipelines.reading.bad_text import DocumentCounts, decode
from pipelines.reading.json_values import records_as_lines

_UTF8_BOM = b"\xef\xbb\xbf"
Columns = list[list[str]]


def read_json_lines(
    file: InputFile, *, section: TextSection, counts: DocumentCounts, piece_bytes: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[Columns, list[str]]]:
    """Yield (columns of text, locators) of about `piece_bytes` of lines.

    Locators are `line N` (from 1), or `byte N` in a part of a file, where the number of the line is not known. A .json file may hold
    its records otherwise than one a line: then they are `record N`.

    Args:
        start, stop: for plain files, the byte range whose lines are read: those that start in it; None for the whole file.
    Raises:
        InputError: a line is not JSON, lacks a key, or holds something else than text; names file and line.
    """
    pieces = read_pieces(file.path, name=file.name, kind=file.format, start=start, stop=stop)
    unit = "line"
    if stop is None and file.format.startswith("json") and not file.format.startswith("jsonl"):
        head, layout = peek(pieces)
        pieces = itertools.chain([head], pieces)
        if layout != "lines":
            pieces, unit = records_as_lines(pieces, name=file.name, is_array=layout == "array"), "record"
    # In a part of a file the number of a line would take counting all lines before it; its byte is known.
    position = None if stop is None else first_line_start(file.path, start)
    number = 1
    for lines in _whole_lines(pieces, piece_bytes):
        places = _Places(file, number, position, unit)
        columns = _parse_fast(lines, section)
        if columns is not None:
            locators = places.locators(lines)
        else:
            columns, locators = _parse_carefully(lines, section, counts, places)
        number += len(lines)
        if position is not None:
            position += sum(map(len, lines)) + len(lines)
        if locators:
            yield columns, locators


@dataclass(frozen=True)
class _Places:
    """Where the lines of a piece are in their file."""

    file: InputFile
    first_line: int
    first_byte: int | None
    unit: str

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


def _whole_lines(pieces: Iterator[bytes], piece_bytes: int) -> Iterator[list[bytes]]:
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


def _parse_fast(lines: list[bytes], section: TextSection) -> Columns | None:
    """Columns of text if every line is a plain JSON object with text under every key; else None."""
    try:
        records = list(map(orjson.loads, lines))
        columns = [[record[key] for record in records] for key in section.text_keys]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return None
    # Empty texts have to be counted, which is not this way's business. Broken UTF-8 and half surrogate pairs orjson has refused.
    if any(set(map(type, column)) != {str} for column in columns) or not all(columns[-1]):
        return None
    return columns


def _parse_carefully(
    lines: list[bytes], section: TextSection, counts: DocumentCounts, places: _Places
) -> tuple[Columns, list[str]]:
    columns: Columns = [[] for _ in section.text_keys]
    locators: list[str] = []
    for index, (line, locator) in enumerate(zip(lines, places.locators(lines), strict=True)):
        line = line.removeprefix(_UTF8_BOM)
        if not line.strip():
            continue
        where = partial(places.message_place, index, lines)
        record, was_bad = _load(line, section, where)
        values = [_text_of(record, key, where) for key in section.text_keys]
        # A completion without a prompt has loss, a prompt without a completion none.
        if not values[-1]:
            counts.num_empty += 1
            continue
        cleaned = [_without_surrogates(value) for value in values]
        if cleaned != values:
            was_bad = True
            if section.on_bad_text == "refuse":
                raise InputError(where(), "holds half a surrogate pair", "repair it, or set on_bad_text: replace")
        counts.num_bad_text += was_bad
        for column, value in zip(columns, cleaned, strict=True):
            column.append(value)
        locators.append(locator)
    return columns, locators


def _load(line: bytes, section: TextSection, where: Callable[[], str]) -> tuple[Any, bool]:
    """The value of a line, and whether broken UTF-8 was replaced in it."""
    try:
        return orjson.loads(line), False
    except orjson.JSONDecodeError as error:
        problem = error
    text, was_bad = decode(line, section, lambda _: where())
    try:
        return json.loads(text), was_bad  # also reads NaN and lone surrogates, which orjson refuses
    except json.JSONDecodeError:
        raise InputError(where(), f"not valid JSON ({first_line(problem)})", "fix or remove the line") from problem


def _text_of(record: Any, key: str, where: Callable[[], str]) -> str:
    """Text under a key; null counts as empty."""
    if not isinstance(record, dict):
        problem = f"holds a JSON {_json_type(record)}, not an object with the key {key!r}"
        raise InputError(where(), problem, "fix or remove the line")
    if key not in record:
        raise missing_key(where(), key, record)
    value = record[key]
    if value is None:
        return ""
    if not isinstance(value, str):
        problem = f"{key!r} holds a JSON {_json_type(value)}, not text"
        raise InputError(where(), problem, "fix or remove the line, or name another key")
    return value


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _without_surrogates(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Through UTF-16, so that two halves which belong together, as JSON escapes them, become the character that they are.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
