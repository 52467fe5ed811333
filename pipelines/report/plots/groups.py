"""The plot with a row per group of sources."""

from __future__ import annotations

from collections.abc import Iterator

from fastmix_data.results.mixture import Mixture
from pipelines.report.format import percent, times
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import WIDTH, Frame
from pipelines.report.plots.row_marks import (
    MAX_ROWS,
    ROW,
    Sign,
    diamond,
    headings,
    legend,
    name_room,
    rest_row,
    row_name,
    upright,
)
from pipelines.report.plots.svg import Canvas, Scale


def groups_plot(inputs: ReportInputs, mixture: Mixture) -> Canvas:
    """Total weight of each group beside its share of the catalog's tokens, with the bounds of the recipe; the largest on top."""
    totals = {group.label: group.total(mixture.weights) for group in inputs.groups}
    ordered = sorted(inputs.groups, key=lambda group: -totals[group.label])
    groups, rest = ordered[:MAX_ROWS], ordered[MAX_ROWS:]
    sizes = {group.label: group.total(inputs.size_shares) for group in groups} if inputs.size_shares else {}
    bounded = [bound for group in groups for bound in (group.low, group.high) if 0 < bound < 1]
    canvas = Canvas(WIDTH, 62 + ROW * (len(groups) + bool(rest)) + 40, "Total weights of groups of sources")
    plot = Frame(canvas, left=name_room(group.label for group in groups), right=262, top=52, bottom=40)
    x = Scale(0, 1.04 * max(*totals.values(), *sizes.values(), *bounded, 0.01), plot.left, plot.right)
    plot.columns(x, x_format=lambda value: f"{100 * value:g}%")
    legend(plot, _legend_entries(canvas, has_sizes=bool(sizes), has_bounds=bool(bounded)))
    headings(plot, (plot.right + 62, "weight"), (plot.right + 150, "sources"), (WIDTH - 4, "÷ uniform"))
    for row, group in enumerate(groups):
        middle, total, count = plot.top + ROW * (row + 0.5), totals[group.label], len(group.sources)
        row_name(plot, middle, group.label, "" if group.name else "dim")
        canvas.rect(x(0), middle - 7, x(total) - x(0), 14, "bar plain", tip=f"{group.label}: {percent(total)}")
        for bound, what in ((group.low, "at least"), (group.high, "at most")):
            if 0 < bound < 1:
                upright(canvas, x(bound), middle, "mark-cap", tip=f"{group.label}: {what} {percent(bound)}")
        if sizes:
            diamond(canvas, x(sizes[group.label]), middle, tip=f"{group.label}: {percent(sizes[group.label])} by size")
        canvas.text(plot.right + 62, middle, percent(total), "number strong", anchor="end")
        canvas.text(plot.right + 150, middle, f"{count}", "number dim", anchor="end")
        canvas.text(WIDTH - 4, middle, times(total * len(inputs.sources) / count), "number", anchor="end")
    if rest:
        share = percent(sum(totals[group.label] for group in rest))
        rest_row(plot, len(groups), f"{len(rest)} more groups: {share} together, each less than these")
    return canvas


def _legend_entries(canvas: Canvas, *, has_sizes: bool, has_bounds: bool) -> Iterator[tuple[Sign, float, str]]:
    if has_sizes:
        yield lambda at, middle: diamond(canvas, at + 5, middle), 15, "proportional to size"
    if has_bounds:
        yield lambda at, middle: upright(canvas, at + 4, middle, "mark-cap", reach=8), 12, "bound of the recipe"
