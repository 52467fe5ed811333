"""Counts of tokens and sizes of bytes as people write them: `2M`, `64MiB`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e\+?[0-9]+)?)\s*([A-Za-z]*)\s*$", re.IGNORECASE)
_COUNT_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTE_SUFFIXES = (
    {"": 1, "b": 1}
    | {f"{letter}b": 10 ** (3 * power) for power, letter in enumerate("kmgt", 1)}
    | {f"{letter}ib": 1 << (10 * power) for power, letter in enumerate("kmgt", 1)}
)


def _parse(value: Any, suffixes: dict[str, int], example: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number; write it like {example}")
    match = _NUMBER.match(str(value))
    if match is None or match[2].lower() not in suffixes:
        raise ValueError(f"{value!r} is not a number; write it like {example}")
    # Through float, for "1.5B" and "1e9"; exact up to 2**53, and nobody writes a budget of 16 digits.
    return round(float(match[1].replace("_", "")) * suffixes[match[2].lower()])


def parse_count(value: Any) -> int:
    """Read a count of tokens.

    >>> parse_count("2M"), parse_count("1.5B"), parse_count(300)
    (2000000, 1500000000, 300)
    """
    return _parse(value, _COUNT_SUFFIXES, "2M or 100B")


def parse_bytes(value: Any) -> int:
    """Read a size in bytes.

    >>> parse_bytes("64MiB"), parse_bytes("1GB"), parse_bytes(300)
    (67108864, 1000000000, 300)
    """
    return _parse(value, _BYTE_SUFFIXES, "64MiB or 1GB")


def format_count(value: float) -> str:
    """Write a count of tokens in three or four digits.

    >>> format_count(1_234_567), format_count(980), format_count(2e12)
    ('1.23M', '980', '2.00T')
    """
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if abs(value) >= 10**power:
            scaled = value / 10**power
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{letter}"
    return f"{value:.0f}"


TokenCount = Annotated[int, BeforeValidator(parse_count, json_schema_input_type=int | str), Field(gt=0)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str), Field(gt=0)]
