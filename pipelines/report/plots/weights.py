"""The final weights, a row per source."""

from __future__ import annotations

from collections.abc import Iterator

from fastmix_data.results.mixture import Mixture
from pipelines.report.format import percent, times
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import WIDTH, Frame, colour
from pipelines.report.plots.row_marks import (
    ROW,
    Sign,
    diamond,
    headings,
    legend,
    name_room,
    rest_row,
    row_name,
    shown_rows,
    upright,
    whisker,
)
from pipelines.report.plots.svg import Canvas, Scale


def weights_plot(inputs: ReportInputs, mixture: Mixture) -> Canvas:
    """Final weights with their intervals against uniform and size-proportional, a row per source."""
    shown = shown_rows(inputs.sources)
    num_rest = len(inputs.sources) - len(shown)
    canvas = Canvas(WIDTH, 66 + ROW * (len(shown) + bool(num_rest)) + 40, "Final weights with 90% intervals")
    uniform, certainty = 1 / len(inputs.sources), mixture.certainty
    held = {name: mixture.binding[name] for name in shown if name in mixture.binding}
    plot = Frame(canvas, left=name_room(shown), right=262 + (76 if held else 0), top=52, bottom=40)
    x = Scale(0, 1.04 * max(uniform, *_drawn_shares(inputs, mixture, shown)), plot.left, plot.right)
    plot.columns(x, x_format=lambda value: f"{100 * value:g}%")
    canvas.line(x(uniform), plot.top - 4, x(uniform), plot.top + ROW * len(shown), "mark-uniform")
    legend(plot, _legend_entries(inputs, canvas, uniform))
    heads = [(plot.right + 62, "weight"), (plot.right + 176, "90% interval"), (plot.right + 258, "÷ uniform")]
    headings(plot, *heads, *([(WIDTH - 4, "held at")] if held else []))
    for rank, name in enumerate(shown):
        middle, weight = plot.top + ROW * (rank + 0.5), mixture.weights[name]
        with canvas.group(name):
            row_name(plot, middle, name)
            canvas.rect(x(0), middle - 7, x(weight) - x(0), 14, f"bar {colour(rank)}", tip=f"{name}: {percent(weight)}")
            interval = certainty.interval.get(name)
            if interval is not None:
                whisker(canvas, x(interval[0]), x(interval[1]), middle)
            _other_seeds(canvas, x, middle + 9, mixture, name)
            if name in inputs.size_shares:
                share = inputs.size_shares[name]
                diamond(canvas, x(share), middle, tip=f"{name}: {percent(share)} by size")
            canvas.text(plot.right + 62, middle, percent(weight), "number strong", anchor="end")
            if interval is not None:
                low, high = map(percent, interval)
                canvas.text(plot.right + 176, middle, f"{low} – {high}", "number dim", anchor="end")
            canvas.text(plot.right + 258, middle, times(weight / uniform), "number", anchor="end")
            if name in held:
                canvas.text(WIDTH - 4, middle, held[name], "small ink-capped", anchor="end")
    if num_rest:
        share = sum(mixture.weights[name] for name in inputs.sources if name not in shown)
        rest_row(plot, len(shown), f"{num_rest} others: {percent(share)} together, each less than these")
    return canvas


def _drawn_shares(inputs: ReportInputs, mixture: Mixture, shown: list[str]) -> Iterator[float]:
    """Whatever the rows show of each source, all of which must find a place."""
    certainty = mixture.certainty
    for name in shown:
        yield mixture.weights[name]
        yield inputs.size_shares.get(name, 0.0)
        yield from (found[name][1] for found in (certainty.interval, certainty.seed_interval) if name in found)
        yield from (weights[name] for weights in certainty.seed_weights.values())


def _other_seeds(canvas: Canvas, x: Scale, height: float, mixture: Mixture, name: str) -> None:
    """What other seeds found, just below the interval of this one."""
    certainty = mixture.certainty
    if name in certainty.seed_interval:
        low, high = certainty.seed_interval[name]
        canvas.line(x(low), height, x(high), height, "seed")
    for weights in certainty.seed_weights.values():
        canvas.circle(x(weights[name]), height, 2, "seed-dot", tip=f"{name}, one seed: {percent(weights[name])}")


def _legend_entries(inputs: ReportInputs, canvas: Canvas, uniform: float) -> Iterator[tuple[Sign, float, str]]:
    certainty = inputs.certainty

    def seeds(at: float, middle: float) -> None:
        canvas.line(at, middle, at + 20, middle, "seed")
        for across in (3, 11, 16):
            canvas.circle(at + across, middle, 2, "seed-dot")

    yield lambda at, middle: upright(canvas, at + 4, middle, "mark-uniform", reach=7), 12, f"uniform, {percent(uniform)}"
    if inputs.size_shares:
        yield lambda at, middle: diamond(canvas, at + 5, middle), 15, "proportional to size"
    if certainty.interval:
        yield lambda at, middle: whisker(canvas, at, at + 16, middle), 22, "90% interval"
    if certainty.seed_interval or certainty.seed_weights:
        yield seeds, 26, "each seed, and where one more would lie"
