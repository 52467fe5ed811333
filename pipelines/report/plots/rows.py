"""Plots with a row per source: the final weights, and what the manifest ships."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.report.format import percent, tick, times, tokens
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import LONGEST_LABEL, WIDTH, Frame, colour
from pipelines.report.plots.svg import Canvas, Scale, shorten, text_width

MAX_ROWS = 20
ROW = 24.0


def weights_plot(inputs: ReportInputs) -> Canvas:
    """Final weights with their intervals against uniform and size-proportional, a row per source."""
    mixture = inputs.mixture
    assert mixture is not None
    shown, num_rest = _rows(inputs.sources)
    canvas = Canvas(WIDTH, 66 + ROW * (len(shown) + (num_rest > 0)) + 40, "Final weights with 90% intervals")
    uniform, certainty = 1 / len(inputs.sources), inputs.certainty
    ends = [mixture.weights[name] for name in shown]
    ends += [found[name][1] for found in (mixture.interval, certainty.seed_interval) for name in shown if name in found]
    ends += [max(certainty.seed_weights[name], default=0.0) for name in shown if name in certainty.seed_weights]
    held = {name: inputs.binding[name] for name in shown if name in inputs.binding}
    plot = Frame(canvas, left=name_room(shown), right=262 + (76 if held else 0), top=52, bottom=40)
    x = Scale(0, 1.04 * max(*ends, uniform, *(inputs.size_shares.get(name, 0) for name in shown)), plot.left, plot.right)
    plot.columns(x, x_format=lambda value: f"{100 * value:g}%")
    canvas.line(x(uniform), plot.top - 4, x(uniform), plot.top + ROW * len(shown), "mark-uniform")
    _weights_legend(
        canvas,
        plot,
        uniform=uniform,
        has_sizes=bool(inputs.size_shares),
        has_intervals=bool(mixture.interval),
        has_seeds=bool(certainty.seed_interval or certainty.seed_weights),
    )
    heads = [(plot.right + 62, "weight"), (plot.right + 176, "90% interval"), (plot.right + 258, "÷ uniform")]
    for right, heading in heads + ([(WIDTH - 4, "held at")] if held else []):
        canvas.text(right, plot.top - 14, heading, "dim small", anchor="end")
    for rank, name in enumerate(shown):
        middle, weight = plot.top + ROW * (rank + 0.5), mixture.weights[name]
        canvas.open_group(name)
        canvas.text(plot.left - 10, middle, shorten(name, LONGEST_LABEL), anchor="end", tip=name)
        canvas.rect(x(0), middle - 7, x(weight) - x(0), 14, f"bar {colour(rank)}", tip=f"{name}: {percent(weight)}")
        _interval(canvas, x, middle, mixture.interval.get(name))
        _seeds(canvas, x, middle + 9, certainty.seed_interval.get(name), certainty.seed_weights.get(name, ()), name=name)
        if name in inputs.size_shares:
            share = inputs.size_shares[name]
            diamond(canvas, x(share), middle, tip=f"{name}: {percent(share)} by size")
        canvas.text(plot.right + 62, middle, percent(weight), "number strong", anchor="end")
        if name in mixture.interval:
            low, high = mixture.interval[name]
            canvas.text(plot.right + 176, middle, f"{percent(low)} – {percent(high)}", "number dim", anchor="end")
        canvas.text(plot.right + 258, middle, times(weight / uniform), "number", anchor="end")
        if name in held:
            canvas.text(WIDTH - 4, middle, held[name], "small ink-capped", anchor="end")
        canvas.close_group()
    if num_rest:
        rest_row(
            canvas,
            plot,
            len(shown),
            f"{num_rest} others: {percent(_rest_of(inputs, shown, mixture.weights))} together, each less than these",
        )
    return canvas


def manifest_plot(inputs: ReportInputs) -> Canvas:
    """Tokens asked for and given, and how often each source is read against its cap."""
    manifest, emitted = inputs.manifest, inputs.emitted
    assert manifest is not None
    shown, num_rest = _rows(inputs.sources)
    canvas = Canvas(WIDTH, 66 + ROW * (len(shown) + (num_rest > 0)) + 40, "Tokens and epochs of the manifest")
    names = name_room(shown)
    middle_gap = 96.0
    split = names + (WIDTH - names - middle_gap - 92) * 0.6
    left = Frame(canvas, left=names, right=WIDTH - split, top=52, bottom=40)
    right = Frame(canvas, left=split + middle_gap, right=92, top=52, bottom=40)
    asked = {name: emitted[name].weight * manifest.token_budget for name in shown}
    x = Scale(0, 1.04 * max(*asked.values(), *(emitted[name].num_tokens for name in shown)), left.left, left.right)
    most = max(emitted[name].epochs for name in shown)
    caps = [emitted[name].max_epochs for name in shown if emitted[name].max_epochs <= 2 * max(most, 1)]
    e = Scale(0, 1.06 * max([most, 1.0, *caps]), right.left, right.right)
    left.columns(x, x_format=tick, x_label="tokens")
    right.columns(e, x_format=lambda value: f"{value:g}", x_label="epochs", count=4)
    _manifest_legend(canvas, left, right, has_caps=bool(caps))
    for rank, name in enumerate(shown):
        source, middle = emitted[name], left.top + ROW * (rank + 0.5)
        canvas.open_group(name)
        canvas.text(left.left - 10, middle, shorten(name, LONGEST_LABEL), anchor="end", tip=name)
        given_tip = f"{name}: {source.num_tokens:,} tokens"
        canvas.rect(x(0), middle - 7, x(source.num_tokens) - x(0), 14, f"bar {colour(rank)}", tip=given_tip)
        canvas.line(x(asked[name]), middle - 10, x(asked[name]), middle + 10, "mark-asked")
        canvas.text(left.right + 62, middle, tokens(source.num_tokens), "number strong", anchor="end")
        epochs_tip = f"{name}: {source.epochs:.2f} epochs, at most {source.max_epochs:g}"
        canvas.rect(e(0), middle - 7, e(source.epochs) - e(0), 14, "bar capped" if source.capped else "bar plain", tip=epochs_tip)
        if source.max_epochs <= e.high:
            canvas.line(e(source.max_epochs), middle - 10, e(source.max_epochs), middle + 10, "mark-cap")
        label = f"{source.epochs:.2f}" + (" cap" if source.capped else "")
        canvas.text(right.right + 12, middle, label, "number ink-capped" if source.capped else "number")
        canvas.close_group()
    if num_rest:
        rest = _rest_of(inputs, shown, {name: float(source.num_tokens) for name, source in emitted.items()})
        num_capped = sum(source.capped for name, source in emitted.items() if name not in shown)
        rest_row(
            canvas, left, len(shown), f"{num_rest} others: {tokens(rest)} tokens together, {num_capped} of them at their cap"
        )
    return canvas


def name_room(names: Iterable[str]) -> float:
    """Pixels that the names of rows need at the left."""
    return max(70.0, *(text_width(shorten(name, LONGEST_LABEL)) + 18 for name in names))


def _rows(sources: Sequence[str]) -> tuple[list[str], int]:
    """Sources that get a row of their own, and how many do not."""
    if len(sources) <= MAX_ROWS + 2:
        return list(sources), 0
    return list(sources[:MAX_ROWS]), len(sources) - MAX_ROWS


def _rest_of(inputs: ReportInputs, shown: Sequence[str], values: dict[str, float]) -> float:
    return sum(values[name] for name in inputs.sources if name not in shown)


def rest_row(canvas: Canvas, plot: Frame, row: int, text: str) -> None:
    """Say what the rows without a place come to."""
    canvas.text(plot.left + 6, plot.top + ROW * (row + 0.5), text, "dim halo")


def _interval(canvas: Canvas, x: Scale, middle: float, interval: tuple[float, float] | None) -> None:
    if interval is None:
        return
    low, high = interval
    canvas.line(x(low), middle, x(high), middle, "whisker")
    for end in (low, high):
        canvas.line(x(end), middle - 4, x(end), middle + 4, "whisker")


def _seeds(
    canvas: Canvas, x: Scale, height: float, interval: tuple[float, float] | None, weights: Sequence[float], *, name: str
) -> None:
    """What other seeds found, just below the interval of this one."""
    if interval is not None:
        canvas.line(x(interval[0]), height, x(interval[1]), height, "seed")
    for weight in weights:
        canvas.circle(x(weight), height, 2, "seed-dot", tip=f"{name}, one seed: {percent(weight)}")


def diamond(canvas: Canvas, across: float, middle: float, *, tip: str = "") -> None:
    """Mark a share by size."""
    size = 4.5
    points = [(across - size, middle), (across, middle - size), (across + size, middle), (across, middle + size)]
    canvas.path(points, "mark-size", close=True, tip=tip)


def _weights_legend(
    canvas: Canvas, plot: Frame, *, uniform: float, has_sizes: bool, has_intervals: bool, has_seeds: bool
) -> None:
    at, height = plot.left, 14.0
    canvas.line(at + 4, height - 7, at + 4, height + 7, "mark-uniform")
    canvas.text(at + 12, height, f"uniform, {percent(uniform)}", "dim small")
    at += 24 + text_width(f"uniform, {percent(uniform)}")
    if has_sizes:
        diamond(canvas, at + 5, height)
        canvas.text(at + 15, height, "proportional to size", "dim small")
        at += 27 + text_width("proportional to size")
    if has_intervals:
        canvas.line(at, height, at + 16, height, "whisker")
        for end in (at, at + 16):
            canvas.line(end, height - 4, end, height + 4, "whisker")
        canvas.text(at + 22, height, "90% interval", "dim small")
        at += 34 + text_width("90% interval")
    if has_seeds:
        canvas.line(at, height, at + 20, height, "seed")
        for weight in (at + 3, at + 11, at + 16):
            canvas.circle(weight, height, 2, "seed-dot")
        canvas.text(at + 26, height, "each seed, and where one more would lie", "dim small")


def _manifest_legend(canvas: Canvas, left: Frame, right: Frame, *, has_caps: bool) -> None:
    height = 14.0
    canvas.text(left.left, height + 16, "Tokens in the manifest", "strong")
    canvas.line(left.left + 4, height - 14, left.left + 4, height + 2, "mark-asked")
    canvas.text(left.left + 12, height - 6, "asked for: weight × budget", "dim small")
    canvas.text(right.left, height + 16, "Times each source is read", "strong")
    if has_caps:
        canvas.line(right.left + 4, height - 14, right.left + 4, height + 2, "mark-cap")
        canvas.text(right.left + 12, height - 6, "max_epochs", "dim small")
