"""What the plots over the search share: the picture with tokens across, and lines of not too many points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Float64s
from pipelines.report.format import tick
from pipelines.report.plots.frame import WIDTH, Frame
from pipelines.report.plots.svg import Canvas, Scale, path_of

_MAX_POINTS = 240  # one for about three pixels; an update for each would make the page as large as the trajectory
_SPARK_POINTS = 24


def _plain(value: float) -> str:
    return f"{value:g}"


class SearchPlot:
    """A picture over the search: across are the tokens that the proxy has seen, upwards one quantity."""

    def __init__(
        self,
        title: str,
        tokens_U: Float64s,
        *,
        height: float,
        low: float,
        high: float,
        right: float,
        left: float = 56,
        top: float = 34,
        y_label: str = "",
        y_format: Callable[[float], str] = _plain,
    ) -> None:
        """Draw the axes; `low` and `high` are the ends of the quantity, `left`, `right` and `top` margins in pixels."""
        self.canvas = Canvas(WIDTH, height, title)
        self.frame = Frame(self.canvas, left=left, right=right, top=top, bottom=44)
        self.tokens_U = tokens_U
        self.x = Scale(0, tokens_U[-1], self.frame.left, self.frame.right)
        self.y = Scale(low, high, self.frame.bottom, self.frame.top)
        self.frame.axes(self.x, self.y, x_label="tokens seen by the proxy", x_format=tick, y_format=y_format, y_label=y_label)

    def points(self, values_U: Float64s) -> list[tuple[float, float]]:
        """Pixels of a line, thinned; values that are not numbers are left out."""
        chosen = thin(len(values_U), _MAX_POINTS)
        pairs = zip(self.tokens_U[chosen].tolist(), values_U[chosen].tolist(), strict=True)
        return [(self.x(tokens), self.y(value)) for tokens, value in pairs if np.isfinite(value)]

    def line(self, name: str, values_U: Float64s, css: str) -> None:
        """Draw what belongs to one source or target."""
        with self.canvas.group(name):
            self.canvas.path(self.points(values_U), f"line {css}", tip=name)

    def band(self, name: str, lower_U: Float64s, upper_U: Float64s, css: str) -> None:
        """Fill what lies between two lines."""
        self.canvas.path(self.points(upper_U) + self.points(lower_U)[::-1], css, close=True, tip=name)


def sparkline(values_U: Float64s, *, css: str) -> str:
    """A weight over time, for a table's cell; scaled to its own largest value."""
    thinned = values_U[thin(len(values_U), _SPARK_POINTS)]
    across, up = Scale(0, max(len(thinned) - 1, 1), 1, 71), Scale(0, float(thinned.max()) or 1.0, 17, 2)
    points = [(across(number), up(value)) for number, value in enumerate(thinned.tolist())]
    return f'<svg class="spark" viewBox="0 0 72 18" aria-hidden="true"><path class="line {css}" d="{path_of(points)}"/></svg>'


def thin(count: int, at_most: int) -> npt.NDArray[np.intp]:
    """Indices of at most so many evenly spaced rows, the first and last among them.

    >>> thin(10, 4).tolist()
    [0, 3, 6, 9]
    """
    # Rows are picked, not averaged: the ends of a line are numbers that stand in the text and the table too.
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(np.intp))
