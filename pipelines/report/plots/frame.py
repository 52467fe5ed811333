"""What the plots share: the rectangle that data are drawn in, colours by rank, names at the right edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pipelines.report.plots.svg import Canvas, Scale, shorten, spread_labels, text_width

NUM_COLOURS = 9  # more cannot be told apart at the size of a dot
WIDTH = 920.0
LONGEST_LABEL = 26
LABEL_GAP = 16.0


def colour(rank: int) -> str:
    """CSS class of the source with this rank."""
    return f"c{rank}" if rank < NUM_COLOURS else "cx"


class Frame:
    """The rectangle that data are drawn in; margins in pixels."""

    def __init__(self, canvas: Canvas, *, left: float = 46, right: float = 20, top: float = 16, bottom: float = 40) -> None:
        """Leave these margins around the data."""
        self.canvas = canvas
        self.left, self.right = left, canvas.width - right
        self.top, self.bottom = top, canvas.height - bottom

    def axes(
        self,
        x: Scale,
        y: Scale,
        *,
        x_label: str,
        x_format: Callable[[float], str],
        y_format: Callable[[float], str],
        y_label: str = "",
    ) -> None:
        """Draw horizontal grid lines and both axes' numbers."""
        for value in y.ticks():
            self.canvas.line(self.left, y(value), self.right, y(value), "grid")
            self.canvas.text(self.left - 8, y(value), y_format(value), "dim small", anchor="end")
        for value in x.ticks(6):
            self.canvas.line(x(value), self.bottom, x(value), self.bottom + 4, "axis")
            self.canvas.text(x(value), self.bottom + 14, x_format(value), "dim small", anchor="middle")
        self.canvas.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.canvas.text((self.left + self.right) / 2, self.bottom + 32, x_label, "dim small", anchor="middle")
        if y_label:
            self.canvas.text(self.left, self.top - 18, y_label, "dim small", anchor="middle")

    def columns(self, x: Scale, *, x_format: Callable[[float], str], x_label: str = "", count: int = 5) -> None:
        """Draw vertical grid lines with numbers below."""
        for value in x.ticks(count):
            self.canvas.line(x(value), self.top, x(value), self.bottom, "grid")
            self.canvas.text(x(value), self.bottom + 12, x_format(value), "dim small", anchor="middle")
        if x_label:
            self.canvas.text((self.left + self.right) / 2, self.bottom + 29, x_label, "dim small", anchor="middle")


def named_groups(sources: Sequence[str]) -> list[str]:
    """Names that get a colour and a label, and a last one for all the others."""
    # One more than there are colours: a grey source alone is as clear as "1 others" and says its name.
    if len(sources) <= NUM_COLOURS + 1:
        return list(sources)
    return [*sources[:NUM_COLOURS], f"{len(sources) - NUM_COLOURS} others"]


def label_room(labels: Iterable[str]) -> float:
    """Pixels that `label_groups` needs beside the plot."""
    return max(text_width(shorten(label, LONGEST_LABEL)) for label in labels) + 36


def label_groups(plot: Frame, labels: Sequence[str], wanted: Sequence[float], ranks: Sequence[int]) -> None:
    """Write names at the right edge, near the heights wanted, each with the colour of its rank."""
    canvas = plot.canvas
    places = spread_labels(wanted, gap=LABEL_GAP, low=plot.top + 4, high=plot.bottom - 4)
    for label, at, place, rank in zip(labels, wanted, places, ranks, strict=True):
        with canvas.group(label):
            canvas.line(plot.right + 3, at, plot.right + 15, place, "leader")
            canvas.rect(plot.right + 17, place - 4.5, 9, 9, f"bar {colour(rank)}")
            canvas.text(plot.right + 31, place, shorten(label, LONGEST_LABEL), "small", tip=label)
