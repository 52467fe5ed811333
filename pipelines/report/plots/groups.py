"""The plot with a row per group of sources."""

from __future__ import annotations

from pipelines.report.format import percent, times
from pipelines.report.groups import SourceGroup
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import LONGEST_LABEL, WIDTH, Frame
from pipelines.report.plots.rows import MAX_ROWS, ROW, diamond, name_room, rest_row
from pipelines.report.plots.svg import Canvas, Scale, shorten, text_width


def groups_plot(inputs: ReportInputs) -> Canvas:
    """Total weight of each group beside its share of the catalog's tokens, with the bounds of the recipe; the largest on top."""
    mixture = inputs.mixture
    assert mixture is not None and inputs.groups
    totals = {group.label: _total(group, mixture.weights) for group in inputs.groups}
    ordered = sorted(inputs.groups, key=lambda group: -totals[group.label])
    groups, rest = ordered[:MAX_ROWS], ordered[MAX_ROWS:]
    sizes = {group.label: _total(group, inputs.size_shares) for group in groups} if inputs.size_shares else {}
    bounded = [bound for group in groups for bound in (group.low, group.high) if 0 < bound < 1]
    canvas = Canvas(WIDTH, 62 + ROW * (len(groups) + bool(rest)) + 40, "Total weights of groups of sources")
    plot = Frame(canvas, left=name_room(group.label for group in groups), right=262, top=52, bottom=40)
    x = Scale(0, 1.04 * max(*totals.values(), *sizes.values(), *bounded, 0.01), plot.left, plot.right)
    plot.columns(x, x_format=lambda value: f"{100 * value:g}%")
    _legend(canvas, plot, has_sizes=bool(sizes), has_bounds=bool(bounded))
    for right, heading in ((plot.right + 62, "weight"), (plot.right + 150, "sources"), (WIDTH - 4, "÷ uniform")):
        canvas.text(right, plot.top - 14, heading, "dim small", anchor="end")
    for row, group in enumerate(groups):
        middle, total, count = plot.top + ROW * (row + 0.5), totals[group.label], len(group.sources)
        name = f"{shorten(group.label, LONGEST_LABEL)}"
        canvas.text(plot.left - 10, middle, name, "" if group.name else "dim", anchor="end", tip=group.label)
        canvas.rect(x(0), middle - 7, x(total) - x(0), 14, "bar plain", tip=f"{group.label}: {percent(total)}")
        for bound, what in ((group.low, "at least"), (group.high, "at most")):
            if 0 < bound < 1:
                canvas.line(
                    x(bound), middle - 10, x(bound), middle + 10, "mark-cap", tip=f"{group.label}: {what} {percent(bound)}"
                )
        if sizes:
            diamond(canvas, x(sizes[group.label]), middle, tip=f"{group.label}: {percent(sizes[group.label])} by size")
        canvas.text(plot.right + 62, middle, percent(total), "number strong", anchor="end")
        canvas.text(plot.right + 150, middle, f"{count}", "number dim", anchor="end")
        canvas.text(WIDTH - 4, middle, times(total * len(inputs.sources) / count), "number", anchor="end")
    if rest:
        share = percent(sum(totals[group.label] for group in rest))
        rest_row(canvas, plot, len(groups), f"{len(rest)} more groups: {share} together, each less than these")
    return canvas


def _total(group: SourceGroup, shares: dict[str, float]) -> float:
    return sum(shares.get(name, 0.0) for name in group.sources)


def _legend(canvas: Canvas, plot: Frame, *, has_sizes: bool, has_bounds: bool) -> None:
    at, height = plot.left, 14.0
    if has_sizes:
        diamond(canvas, at + 5, height)
        canvas.text(at + 15, height, "proportional to size", "dim small")
        at += 27 + text_width("proportional to size")
    if has_bounds:
        canvas.line(at + 4, height - 8, at + 4, height + 8, "mark-cap")
        canvas.text(at + 12, height, "bound of the recipe", "dim small")
