"""What the plots with a row per source, group or method share: names, numbers in columns, marks and their legend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pipelines.report.plots.frame import LONGEST_LABEL, Frame
from pipelines.report.plots.svg import Canvas, shorten, text_width

MAX_ROWS = 20
ROW = 24.0
_LEGEND_HEIGHT = 14.0

# Draws a mark of the legend: its left end and vertical middle.
Sign = Callable[[float, float], None]


def name_room(names: Iterable[str]) -> float:
    """Pixels that the names of rows need at the left."""
    return max(70.0, *(text_width(shorten(name, LONGEST_LABEL)) + 18 for name in names))


def shown_rows(names: Sequence[str]) -> list[str]:
    """Names that get a row of their own: all, or as many as fit a screen."""
    # Two more cost no more room than the row that would tell of them, and the page would say less.
    return list(names) if len(names) <= MAX_ROWS + 2 else list(names[:MAX_ROWS])


def row_name(plot: Frame, middle: float, name: str, css: str = "") -> None:
    """Write the name of a row, the whole of it when pointed at."""
    plot.canvas.text(plot.left - 10, middle, shorten(name, LONGEST_LABEL), css, anchor="end", tip=name)


def headings(plot: Frame, *texts: tuple[float, str]) -> None:
    """Write (right end, heading) of each column of numbers above the rows."""
    for right, text in texts:
        plot.canvas.text(right, plot.top - 14, text, "dim small", anchor="end")


def rest_row(plot: Frame, row: int, text: str) -> None:
    """Say what the rows without a place come to."""
    # The text runs over the grid lines; its halo in the colour of the paper keeps it readable.
    plot.canvas.text(plot.left + 6, plot.top + ROW * (row + 0.5), text, "dim halo")


def diamond(canvas: Canvas, across: float, middle: float, *, tip: str = "") -> None:
    """Mark a share by size."""
    size = 4.5
    points = [(across - size, middle), (across, middle - size), (across + size, middle), (across, middle + size)]
    canvas.path(points, "mark-size", close=True, tip=tip)


def whisker(canvas: Canvas, low: float, high: float, middle: float) -> None:
    """Draw an interval with its ends."""
    canvas.line(low, middle, high, middle, "whisker")
    for end in (low, high):
        canvas.line(end, middle - 4, end, middle + 4, "whisker")


def upright(canvas: Canvas, across: float, middle: float, css: str, *, reach: float = 10, tip: str = "") -> None:
    """Mark a value by a vertical line that reaches as far up as down."""
    canvas.line(across, middle - reach, across, middle + reach, css, tip=tip)


def legend(plot: Frame, entries: Iterable[tuple[Sign, float, str]], *, middle: float = _LEGEND_HEIGHT) -> None:
    """Draw (sign, pixels that it takes, text) side by side above a plot."""
    at = plot.left
    for sign, room, text in entries:
        sign(at, middle)
        plot.canvas.text(at + room, middle, text, "dim small")
        at += room + 12 + text_width(text)
