"""Tables of the terminal."""

from __future__ import annotations

from collections.abc import Container, Sequence


def aligned(rows: Sequence[Sequence[str]], *, flush_left: Container[int] = (0,)) -> str:
    """Rows of cells as lines, columns two blanks apart; headings are a row like any other.

    Args:
        flush_left: numbers of the columns that are aligned to the left, the others are to the right.

    >>> print(aligned([("source", "tokens"), ("web", "1.2M"), ("code", "900")]))
    source  tokens
    web       1.2M
    code       900
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column in flush_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
