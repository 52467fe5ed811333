"""How a .json file holds its records: one a line, as JSON Lines do, or as values that run over several lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import orjson

from pipelines.inputs.streams import UTF8_BOM, read_pieces

JsonLayout = Literal["lines", "array", "values"]
# Enough for the first line of most files; a longer one is read right as `values` too, only not in parts.
_HEAD_BYTES = 1 << 20
_LARGEST_METADATA_BYTES = 1 << 20


def json_layout(head: bytes) -> JsonLayout:
    """What the first bytes of a file say about all of it.

    >>> json_layout(b'{"a": 1}\\n{"a": 2}'), json_layout(b' [{"a": 1},'), json_layout(b'{\\n  "a": 1\\n}')
    ('lines', 'array', 'values')
    """
    content = head.removeprefix(UTF8_BOM).lstrip()
    if content.startswith(b"["):
        return "array"
    first_line, line_end, _ = content.partition(b"\n")
    try:
        if line_end:
            orjson.loads(first_line)
            return "lines"
    except orjson.JSONDecodeError:
        pass
    return "values"


def peek(pieces: Iterator[bytes]) -> tuple[bytes, JsonLayout]:
    """The first bytes of a stream, which are taken from it, and what they say."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _HEAD_BYTES or (b"\n" in head and head.strip()):
            break
    return head, json_layout(head)


def is_cut_at_lines(path: str, *, name: str) -> bool:
    """Whether a plain .json file can be read in parts, as JSON Lines can."""
    return peek(read_pieces(path, name=name, kind="json"))[1] == "lines"


def only_object(path: str, num_bytes: int) -> dict[str, Any] | None:
    """The object that is all of a small .json file; None if there are more records, or none."""
    if num_bytes > _LARGEST_METADATA_BYTES:
        return None
    try:
        content = orjson.loads(b"".join(read_pieces(path, name=path, kind="json")).removeprefix(UTF8_BOM))
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None
