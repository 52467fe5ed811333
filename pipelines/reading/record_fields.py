"""From a record to the texts of its fields: keys and paths looked up, templates filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fastmix_data.recipe.fields import Field, Key, Template
from pipelines.inputs.columns import absent_key
from pipelines.reading.bad_records import BadRecord

# From here on a float may stand for a whole number of which it has not all digits.
LARGEST_EXACT = 2.0**53


@dataclass(frozen=True)
class Number:
    """A number as it is written, where Python's own types would change it or cannot hold it (NaN)."""

    written: str
    is_finite: bool = True


class InexactNumber(BadRecord):
    """A number that its reader may have rounded; the careful reader knows how it is written."""


def resolve_field(record: Mapping[str, Any], field: Field) -> str:
    """Text of a field of a record; null is empty.

    Raises:
        BadRecord: the record lacks a key, or holds something else than text under it. Templates take numbers and booleans too.
    """
    if isinstance(field, Template):
        return _fill(record, field)
    value = look_up(record, field)
    # One element a line, also the empty ones: of a text that was kept as a list of its lines, these are the blank lines.
    return "\n".join(_text(part, field) for part in value) if field.is_repeated and value is not None else _text(value, field)


def look_up(record: Mapping[str, Any], key: Key) -> Any:
    """Value of a key; a list of values where the key has `[*]`. Null where any part of the path is, or a list is too short.

    Raises:
        BadRecord: the record lacks the key, or the path leads through something else than objects and lists.
    """
    if key.written in record:
        # With `[*]` in its name it is a single value all the same.
        return [record[key.written]] if key.is_repeated else record[key.written]
    try:
        return _walk(record, key.steps, key)
    except KeyError as error:
        if key.is_optional:
            return None
        raise BadRecord(*absent_key(key.written, error.args[0])) from error


def _walk(value: Any, steps: Sequence[str | int | None], key: Key) -> Any:
    for number, step in enumerate(steps):
        if value is None:
            return None
        wanted: type[Any] = dict if isinstance(step, str) else list
        if not isinstance(value, wanted):
            raise BadRecord(f"{key.written!r} leads through a JSON {json_type(value)}, which has no {_written(step)}")
        if step is None:
            rest = steps[number + 1 :]
            parts = [_walk(element, rest, key) for element in value]
            # Lists of lists give one flat list; a list that is null has no elements.
            return [leaf for part in parts for leaf in part or ()] if None in rest else parts
        if isinstance(step, str):
            if step not in value:
                raise KeyError(value)
            value = value[step]
        else:
            value = value[step] if -len(value) <= step < len(value) else None
    return value


def _written(step: str | int | None) -> str:
    return f"key {step!r}" if isinstance(step, str) else f"[{'*' if step is None else step}]"


def _text(value: Any, key: Key) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    remedy = "fix or remove it, or name another key"
    if isinstance(value, int | float | Decimal | Number):
        remedy += f' (the template "{{{key.written}}}" reads it as text)'
    elif isinstance(value, list):
        remedy += f" (all of it is {key.written}[*])"
    raise BadRecord(f"{key.written!r} holds a JSON {json_type(value)}, not text", remedy)


def _fill(record: Mapping[str, Any], template: Template) -> str:
    """A template's text. A line whose keys are all empty is left out, with the blank lines before it."""
    filled: list[str] = []
    is_cut_at_start = False
    for line in template.lines:
        keys = [piece for piece in line if isinstance(piece, Key)]
        if not keys:
            text = "".join(map(str, line))
            if text or filled or not is_cut_at_start:
                filled.append(text)
            continue
        rows = _rows(record, keys)
        filled += ["".join(piece if isinstance(piece, str) else row[piece] for piece in line) for row in rows]
        if not rows:
            while filled and not filled[-1]:
                filled.pop()
            is_cut_at_start = not filled
    return "\n".join(filled)


def _rows(record: Mapping[str, Any], keys: list[Key]) -> list[dict[Key, str]]:
    """Values of the keys of a line: once, or for every element of the lists that it names; none that are all empty."""
    values = {key: look_up(record, key) for key in keys}
    lists = {key: values[key] or [] for key in keys if key.is_repeated}
    lengths = {len(elements) for elements in lists.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{key.written!r} has {len(elements)}" for key, elements in lists.items())
        raise BadRecord(f"lists on one line of a template differ in length: {counts}")
    rows = (
        {key: _scalar(lists[key][number] if key.is_repeated else values[key], key) for key in keys}
        for number in range(max(lengths, default=1))
    )
    return [row for row in rows if any(row.values())]


def _scalar(value: Any, key: Key) -> str:
    """A value within a template: text as it is, numbers and booleans as JSON writes them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) >= LARGEST_EXACT:
            raise InexactNumber(f"{key.written!r} holds {value}, which may not be all of its digits")
        return repr(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Number) and value.is_finite:
        return value.written
    remedy = (
        f"name what is in it, as {key.written}[*] or {key.written}.KEY" if isinstance(value, list | dict) else "fix or remove it"
    )
    found = value.written if isinstance(value, Number) else f"a JSON {json_type(value)}"
    raise BadRecord(f"{key.written!r} holds {found}, which a template cannot take", remedy)


def json_type(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    names |= dict.fromkeys((int, float, Decimal, Number), "number")
    return names.get(type(value), type(value).__name__)
