"""Tables of the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], *, align: str = "<>") -> str:
    """Rows of cells as lines, columns two blanks apart; headings are a row like any other.

    Args:
        align: "<" or ">" for each column, to the left or to the right; the last one goes for the columns after it too.

    >>> print(text_table([["source", "tokens"], ["a", "12"]]))
    source  tokens
    a           12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align + align[-1] * len(widths)
    lines = ["  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
