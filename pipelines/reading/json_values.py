"""JSON that is one array of records, or values that run over several lines, turned into one record a line.

Whoever reads the lines needs no parser of its own for it, nor the whole file in memory: a question-answer set of some gigabytes is
often one array.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastmix_data.arrays import Bools
from fastmix_data.errors import InputError

_QUOTE, _COMMA, _BRACKET, _LINE_FEED, _RETURN, _SPACE = b'",[\n\r '
_OPEN, _CLOSE, _CURLY_BIT = 0x7B, 0x7D, 0x20  # brackets differ from braces in one bit


def records_as_lines(pieces: Iterator[bytes], *, name: str, is_array: bool) -> Iterator[bytes]:
    """Yield the bytes of a file with a line end after each record and nowhere else.

    Args:
        is_array: whether the records are the elements of an array; else they are the values of the file.
    Raises:
        InputError: the file ends within a record or within the array.
    """
    depth, in_text, held = 0, False, b""
    for piece in pieces:
        content = held + piece
        # A run of backslashes is judged as a whole.
        end = len(content.rstrip(b"\\"))
        content, held = content[:end], content[end:]
        if not content:
            continue
        letters = np.frombuffer(content.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        # Odd where a text is open. Quotes are on its inside at the start and on its outside at the end, which no rule below minds.
        is_text: Bools = (np.bitwise_xor.accumulate(letters == _QUOTE) ^ in_text).astype(np.bool_)
        in_text = bool(is_text[-1])
        brackets = np.where(is_text, 0, letters | _CURLY_BIT)
        opens, closes = brackets == _OPEN, brackets == _CLOSE
        depths = depth + np.cumsum(opens.astype(np.int32) - closes)
        depth = int(depths[-1])
        lines = np.frombuffer(content, np.uint8).copy()
        is_break = ~is_text & ((letters == _LINE_FEED) | (letters == _RETURN))
        if is_array:
            lines[is_break] = _SPACE
            lines[(letters == _BRACKET) & (depths == 1) & opens] = _SPACE
            lines[closes & (depths == 0)] = _LINE_FEED
            lines[~is_text & (letters == _COMMA) & (depths == 1)] = _LINE_FEED
        else:
            lines[is_break & (depths > 0)] = _SPACE
        yield lines.tobytes()
    if depth or in_text or held:
        unit = "array" if is_array and depth >= 1 else "last value"
        raise InputError(name, f"the JSON {unit} is cut short", "write or download the file again")
