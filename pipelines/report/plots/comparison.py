"""The dot plot of compared methods."""

from __future__ import annotations

from collections.abc import Sequence

from fastmix_data.results.comparison import REFERENCE
from pipelines.report.format import tokens
from pipelines.report.method_figures import MethodFigures
from pipelines.report.plots.frame import WIDTH, Frame
from pipelines.report.plots.row_marks import headings, name_room, row_name, whisker
from pipelines.report.plots.svg import Canvas, Scale

_ROW = 28.0


def comparison_plot(methods: Sequence[MethodFigures]) -> Canvas:
    """Each method's loss less uniform's: a small dot per seed, the mean and its interval; the best on top.

    Without uniform among the methods the mean losses themselves are drawn.
    """
    canvas = Canvas(WIDTH, 52 + _ROW * len(methods) + 44, "Target loss of the compared methods")
    plot = Frame(canvas, left=name_room(method.name for method in methods), right=190, top=46, bottom=44)
    # Differences, for seeds move all methods' losses together by more than the methods differ.
    paired = any(method.difference is not None for method in methods)
    values = [value for method in methods for value in _drawn_values(method, paired)] + ([0.0] if paired else [])
    margin = 0.06 * ((max(values) - min(values)) or 0.1)
    x = Scale(min(values) - margin, max(values) + margin, plot.left, plot.right)
    label = "target loss less that of uniform, nats per token; left is better" if paired else "target loss, nats per token"
    plot.columns(x, x_format=lambda value: f"{value:+g}" if paired and value else f"{value:g}", x_label=label)
    if paired:
        canvas.line(x(0), plot.top - 4, x(0), plot.bottom, "zero")
        canvas.text(x(0), plot.top - 14, REFERENCE, "dim small", anchor="middle")
    headings(plot, (plot.right + 76, "mean loss"), (WIDTH - 4, "search tokens"))
    for row, method in enumerate(methods):
        _method_row(plot, x, plot.top + _ROW * (row + 0.5), method, paired=paired)
    return canvas


def _drawn_values(method: MethodFigures, paired: bool) -> list[float]:
    if not paired:
        return [method.mean_loss]
    return [*method.differences, *(method.interval or ())]


def _method_row(plot: Frame, x: Scale, middle: float, method: MethodFigures, *, paired: bool) -> None:
    canvas, ours = plot.canvas, method.name == "fastmix"
    css = "c0" if ours else "cx"
    row_name(plot, middle, method.name, "strong" if ours else "")
    if method.interval is not None:
        whisker(canvas, x(method.interval[0]), x(method.interval[1]), middle)
    for number, difference in enumerate(method.differences):
        canvas.circle(x(difference), middle + 9, 2.2, f"dot {css}", tip=f"{method.name}, seed {number + 1}: {difference:+.4f}")
    at = method.difference if paired else method.mean_loss
    # Uniform has no difference: it is what the others are less.
    canvas.circle(
        x(at if at is not None else 0.0), middle, 5.5, f"dot outlined {css}", tip=f"{method.name}: {method.mean_loss:.4f}"
    )
    canvas.text(plot.right + 76, middle, f"{method.mean_loss:.4f}", "number strong", anchor="end")
    canvas.text(WIDTH - 4, middle, tokens(method.search_tokens), "number", anchor="end")
