"""The report's plots, as SVG: small, sharp at any size, the same bytes for the same numbers.

Sources keep one colour over all plots, by their rank in the mixture; from the tenth on they are grey, and where there are many
they are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipelines.report_format import percent, times, tokens
from pipelines.report_inputs import Float64s, ReportInputs, TrajectoryTable
from pipelines.svg import Canvas, Scale, path_of, shorten, spread_labels, text_width

NUM_COLOURS = 9
MAX_ROWS = 24
_MAX_THIN_LINES = 24
_MAX_POINTS = 240
_WIDTH = 920.0
_LONGEST_LABEL = 26
_ROW = 24.0
_LABEL_GAP = 16.0


def draw_plots(inputs: ReportInputs) -> dict[str, Canvas]:
    """Every plot that the workdir's artefacts allow, by name."""
    plots: dict[str, Canvas] = {}
    if inputs.mixture is not None:
        plots["weights"] = weights_plot(inputs)
    if inputs.trajectory is not None:
        plots["mixture"] = mixture_plot(inputs, inputs.trajectory)
        plots["loss"] = loss_plot(inputs, inputs.trajectory)
        plots["scores"] = scores_plot(inputs, inputs.trajectory)
    if inputs.manifest is not None:
        plots["manifest"] = manifest_plot(inputs)
    return plots


def colour(rank: int) -> str:
    """CSS class of the source with this rank."""
    return f"c{rank}" if rank < NUM_COLOURS else "cx"


def sparkline(values_U: Float64s, *, rank: int) -> str:
    """A source's weight over time, for a table's cell; scaled to its own largest value."""
    thinned = values_U[_thin(len(values_U), 32)]
    across, up = Scale(0, max(len(thinned) - 1, 1), 1, 71), Scale(0, float(thinned.max()) or 1.0, 17, 2)
    points = [(across(number), up(value)) for number, value in enumerate(thinned.tolist())]
    return f'<svg class="spark" viewBox="0 0 72 18" aria-hidden="true"><path class="line {colour(rank)}" d="{path_of(points)}"/></svg>'


def mixture_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Shares of all sources over the search, stacked, the largest on top."""
    canvas = Canvas(_WIDTH, 380, "Mixture over the search")
    tokens_U, weights_UK = _with_start(inputs, trajectory)
    chosen = _thin(len(tokens_U), _MAX_POINTS)
    labels = _labels(inputs.sources)
    plot = _Frame(canvas, right=_label_room(labels), top=26, bottom=44)
    x, y = Scale(0, tokens_U[-1], plot.left, plot.right), Scale(0, 1, plot.bottom, plot.top)
    plot.axes(x, y, x_label="tokens seen by the proxy", x_format=tokens, y_format=lambda value: f"{100 * value:.0f}%")
    order = [trajectory.sources.index(name) for name in inputs.sources]
    bands_UG = _merge_small(weights_UK[:, order], len(labels))[chosen]
    tops_UG = 1 - np.concatenate([np.zeros((len(chosen), 1)), np.cumsum(bands_UG, axis=1)], axis=1)
    pixels = [x(value) for value in tokens_U[chosen]]
    middles: list[float] = []
    for group, label in enumerate(labels):
        upper = list(zip(pixels, map(y, tops_UG[:, group]), strict=True))
        lower = list(zip(pixels, map(y, tops_UG[:, group + 1]), strict=True))
        canvas.open_group(label)
        canvas.path(upper + lower[::-1], f"area {_label_colour(group, labels, inputs)}", close=True, tip=label)
        canvas.close_group()
        middles.append((upper[-1][1] + lower[-1][1]) / 2)
    _averaged_bracket(inputs, plot, x, tokens_U[-1])
    _right_labels(canvas, plot, labels, middles, inputs)
    return canvas


def weights_plot(inputs: ReportInputs) -> Canvas:
    """Final weights with their intervals against uniform and size-proportional, a row per source."""
    mixture = inputs.mixture
    assert mixture is not None
    shown, num_rest = _rows(inputs.sources)
    canvas = Canvas(_WIDTH, 66 + _ROW * (len(shown) + (num_rest > 0)) + 40, "Final weights with 90% intervals")
    uniform = 1 / len(inputs.sources)
    ends = [mixture.interval.get(name, (0.0, 0.0))[1] for name in shown] + [mixture.weights[name] for name in shown]
    plot = _Frame(canvas, left=_name_room(shown), right=214, top=52, bottom=40)
    x = Scale(0, 1.04 * max(*ends, uniform, *(inputs.size_shares.get(name, 0) for name in shown)), plot.left, plot.right)
    plot.columns(x, x_format=lambda value: f"{100 * value:g}%")
    canvas.line(x(uniform), plot.top - 4, x(uniform), plot.bottom, "mark-uniform")
    _weights_legend(canvas, plot, uniform=uniform, has_sizes=bool(inputs.size_shares), has_intervals=bool(mixture.interval))
    for right, heading in ((plot.right + 62, "weight"), (plot.right + 160, "90% interval"), (_WIDTH - 4, "uniform")):
        canvas.text(right, plot.top - 14, heading if heading != "uniform" else "÷ uniform", "dim small", anchor="end")
    for rank, name in enumerate(shown):
        middle, weight = plot.top + _ROW * (rank + 0.5), mixture.weights[name]
        canvas.open_group(name)
        canvas.text(plot.left - 10, middle, shorten(name, _LONGEST_LABEL), anchor="end", tip=name)
        canvas.rect(x(0), middle - 7, x(weight) - x(0), 14, f"bar {colour(rank)}", tip=f"{name}: {percent(weight)}")
        _interval(canvas, x, middle, mixture.interval.get(name))
        if name in inputs.size_shares:
            share = inputs.size_shares[name]
            _diamond(canvas, x(share), middle, tip=f"{name}: {percent(share)} by size")
        canvas.text(plot.right + 62, middle, percent(weight), "number strong", anchor="end")
        if name in mixture.interval:
            low, high = mixture.interval[name]
            canvas.text(plot.right + 160, middle, f"{percent(low)} – {percent(high)}", "number dim", anchor="end")
        canvas.text(_WIDTH - 4, middle, times(weight / uniform), "number", anchor="end")
        canvas.close_group()
    if num_rest:
        _rest_row(
            canvas,
            plot,
            len(shown),
            f"{num_rest} others: {percent(_rest_of(inputs, shown, mixture.weights))} together, each less than these",
        )
    return canvas


def loss_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Target loss on the fresh batches of the search, training loss, and the fixed samples before and after."""
    canvas = Canvas(_WIDTH, 320, "Loss over the search")
    plot = _Frame(canvas, left=50, right=210, top=16, bottom=44)
    ends = inputs.mixture.target_loss if inputs.mixture is not None else {}
    series = (("target, each update's batch", trajectory.target_loss_U, "c0"), ("training data", trajectory.train_loss_U, "cx"))
    values = np.concatenate([trajectory.target_loss_U, trajectory.train_loss_U, list(ends.values())])
    values = values[np.isfinite(values)]
    margin = 0.04 * float(values.max() - values.min() or 1)
    x = Scale(0, trajectory.tokens_U[-1], plot.left, plot.right)
    y = Scale(float(values.min()) - margin, float(values.max()) + margin, plot.bottom, plot.top)
    plot.axes(
        x, y, x_label="tokens seen by the proxy", x_format=tokens, y_format=lambda value: f"{value:g}", y_label="nats per token"
    )
    labels: list[tuple[str, float, str]] = []
    for label, losses_U, css in series:
        canvas.path(_points(x, y, trajectory.tokens_U, losses_U), f"line thick {css}", tip=label)
        labels.append((label, y(float(losses_U[-1])), css))
    for half, label, css in (("search", "target, search half", "dot c0"), ("unseen", "target, unseen half", "ring")):
        for key, at in ((f"{half}_start", plot.left), (f"{half}_end", plot.right)):
            if key in ends:
                canvas.circle(at, y(ends[key]), 5, css, tip=f"{label}: {ends[key]:.3f}")
        if f"{half}_end" in ends:
            labels.append((f"{label} {ends[f'{half}_end']:.3f}", y(ends[f"{half}_end"]), "c0" if half == "search" else "c1"))
    places = spread_labels([place for _, place, _ in labels], gap=_LABEL_GAP, low=plot.top + 6, high=plot.bottom - 6)
    for (label, wanted, css), place in zip(labels, places, strict=True):
        canvas.line(plot.right + 8, wanted, plot.right + 20, place, "leader")
        canvas.text(plot.right + 24, place, label, f"small ink-{css}")
    return canvas


def scores_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Alignment of each source's gradient with the target's over the search."""
    canvas = Canvas(_WIDTH, 340, "Scores over the search")
    labels = _labels(inputs.sources)
    plot = _Frame(canvas, left=56, right=_label_room(labels), top=16, bottom=44)
    scores_UK = _smoothed(trajectory.scores_UK)
    low, high = np.nanquantile(scores_UK, [0.002, 0.998]).tolist()
    margin = 0.05 * ((high - low) or 1.0)
    x = Scale(0, trajectory.tokens_U[-1], plot.left, plot.right)
    y = Scale(min(low, 0.0) - margin, max(high, 0.0) + margin, plot.bottom, plot.top)
    plot.axes(x, y, x_label="tokens seen by the proxy", x_format=tokens, y_format=lambda value: f"{value:g}", y_label="score")
    canvas.line(plot.left, y(0), plot.right, y(0), "zero")
    columns = {name: scores_UK[:, trajectory.sources.index(name)] for name in inputs.sources}
    coloured = [label for label in labels if label in columns]
    others = [name for name in inputs.sources if name not in coloured]
    _others(canvas, x, y, trajectory.tokens_U, {name: columns[name] for name in others})
    wanted: list[float] = []
    for rank in reversed(range(len(coloured))):
        canvas.open_group(coloured[rank])
        points = _points(x, y, trajectory.tokens_U, columns[coloured[rank]])
        canvas.path(points, f"line {colour(rank)}", tip=coloured[rank])
        canvas.close_group()
    wanted = [y(float(columns[name][-1])) for name in coloured]
    if others:
        wanted.append(y(float(np.median([columns[name][-1] for name in others]))))
    _right_labels(canvas, plot, labels, wanted, inputs)
    return canvas


def manifest_plot(inputs: ReportInputs) -> Canvas:
    """Tokens asked for and given, and how often each source is read against its cap."""
    manifest, emitted = inputs.manifest, inputs.emitted
    assert manifest is not None
    shown, num_rest = _rows(inputs.sources)
    canvas = Canvas(_WIDTH, 66 + _ROW * (len(shown) + (num_rest > 0)) + 40, "Tokens and epochs of the manifest")
    names = _name_room(shown)
    middle_gap = 96.0
    split = names + (_WIDTH - names - middle_gap - 70) * 0.6
    left = _Frame(canvas, left=names, right=_WIDTH - split, top=52, bottom=40)
    right = _Frame(canvas, left=split + middle_gap, right=70, top=52, bottom=40)
    asked = {name: emitted[name].weight * manifest.token_budget for name in shown}
    x = Scale(0, 1.04 * max(*asked.values(), *(emitted[name].num_tokens for name in shown)), left.left, left.right)
    most = max(emitted[name].epochs for name in shown)
    caps = [emitted[name].max_epochs for name in shown if emitted[name].max_epochs <= 2 * max(most, 1)]
    e = Scale(0, 1.06 * max([most, 1.0, *caps]), right.left, right.right)
    left.columns(x, x_format=tokens, x_label="tokens")
    right.columns(e, x_format=lambda value: f"{value:g}", x_label="epochs", count=4)
    _manifest_legend(canvas, left, right)
    for rank, name in enumerate(shown):
        source, middle = emitted[name], left.top + _ROW * (rank + 0.5)
        canvas.open_group(name)
        canvas.text(left.left - 10, middle, shorten(name, _LONGEST_LABEL), anchor="end", tip=name)
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
        _rest_row(
            canvas, left, len(shown), f"{num_rest} others: {tokens(rest)} tokens together, {num_capped} of them at their cap"
        )
    return canvas


class _Frame:
    """The rectangle that data are drawn in; margins in pixels."""

    def __init__(self, canvas: Canvas, *, left: float = 46, right: float = 20, top: float = 16, bottom: float = 40) -> None:
        self.canvas = canvas
        self.left, self.right = left, canvas.width - right
        self.top, self.bottom = top, canvas.height - bottom

    def axes(self, x: Scale, y: Scale, *, x_label: str, x_format: object, y_format: object, y_label: str = "") -> None:
        """Draw horizontal grid lines and both axes' numbers."""
        assert callable(x_format) and callable(y_format)
        for value in y.ticks():
            self.canvas.line(self.left, y(value), self.right, y(value), "grid")
            self.canvas.text(self.left - 8, y(value), y_format(value), "dim small", anchor="end")
        for value in x.ticks(6):
            self.canvas.line(x(value), self.bottom, x(value), self.bottom + 4, "axis")
            self.canvas.text(x(value), self.bottom + 14, x_format(value), "dim small", anchor="middle")
        self.canvas.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.canvas.text((self.left + self.right) / 2, self.bottom + 32, x_label, "dim small", anchor="middle")
        if y_label:
            self.canvas.text(self.left + 6, self.top + 4, y_label, "dim small")

    def columns(self, x: Scale, *, x_format: object, x_label: str = "", count: int = 5) -> None:
        """Draw vertical grid lines with numbers below."""
        assert callable(x_format)
        for value in x.ticks(count):
            self.canvas.line(x(value), self.top, x(value), self.bottom, "grid")
            self.canvas.text(x(value), self.bottom + 12, x_format(value), "dim small", anchor="middle")
        if x_label:
            self.canvas.text((self.left + self.right) / 2, self.bottom + 29, x_label, "dim small", anchor="middle")


def _thin(count: int, at_most: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Indices of at most so many evenly spaced rows, the first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(np.intp))


def _points(x: Scale, y: Scale, across: Float64s, up: Float64s) -> list[tuple[float, float]]:
    chosen = _thin(len(across), _MAX_POINTS)
    return [(x(a), y(b)) for a, b in zip(across[chosen].tolist(), up[chosen].tolist(), strict=True) if np.isfinite(b)]


def _with_start(inputs: ReportInputs, trajectory: TrajectoryTable) -> tuple[Float64s, Float64s]:
    """The trajectory with the mixture that it began from put in front, if that is known."""
    if not inputs.start_weights:
        return trajectory.tokens_U, trajectory.weights_UK
    start_K = np.array([inputs.start_weights[name] for name in trajectory.sources])
    return np.concatenate([[0.0], trajectory.tokens_U]), np.concatenate([start_K[None], trajectory.weights_UK])


def _smoothed(scores_UK: Float64s) -> Float64s:
    """Running means over a twentieth of the search: single updates are noisy."""
    window = max(1, len(scores_UK) // 20)
    sums = np.cumsum(np.concatenate([np.zeros((1, scores_UK.shape[1])), scores_UK]), axis=0)
    stops = np.arange(1, len(scores_UK) + 1)
    starts = np.maximum(stops - window, 0)
    means: Float64s = (sums[stops] - sums[starts]) / (stops - starts)[:, None]
    return means


def _labels(sources: Sequence[str]) -> list[str]:
    """Names that get a colour and a label, and a last one for all the others."""
    if len(sources) <= NUM_COLOURS + 1:
        return list(sources)
    return [*sources[:NUM_COLOURS], f"{len(sources) - NUM_COLOURS} others"]


def _label_colour(group: int, labels: Sequence[str], inputs: ReportInputs) -> str:
    return colour(group) if labels[group] in inputs.sources[:NUM_COLOURS] else "cx"


def _merge_small(weights_UK: Float64s, num_groups: int) -> Float64s:
    rest = weights_UK[:, num_groups - 1 :].sum(axis=1, keepdims=True)
    merged: Float64s = np.concatenate([weights_UK[:, : num_groups - 1], rest], axis=1)
    return merged


def _label_room(labels: Iterable[str]) -> float:
    return max(text_width(shorten(label, _LONGEST_LABEL)) for label in labels) + 36


def _name_room(names: Iterable[str]) -> float:
    return max(70.0, *(text_width(shorten(name, _LONGEST_LABEL)) + 18 for name in names))


def _rows(sources: Sequence[str]) -> tuple[list[str], int]:
    """Sources that get a row of their own, and how many do not."""
    if len(sources) <= MAX_ROWS + 2:
        return list(sources), 0
    return list(sources[:MAX_ROWS]), len(sources) - MAX_ROWS


def _rest_of(inputs: ReportInputs, shown: Sequence[str], values: dict[str, float]) -> float:
    return sum(values[name] for name in inputs.sources if name not in shown)


def _rest_row(canvas: Canvas, plot: _Frame, row: int, text: str) -> None:
    canvas.text(plot.left + 6, plot.top + _ROW * (row + 0.5), text, "dim")


def _right_labels(canvas: Canvas, plot: _Frame, labels: Sequence[str], wanted: Sequence[float], inputs: ReportInputs) -> None:
    places = spread_labels(wanted, gap=_LABEL_GAP, low=plot.top + 4, high=plot.bottom - 4)
    for group, (label, at, place) in enumerate(zip(labels, wanted, places, strict=True)):
        css = _label_colour(group, labels, inputs)
        canvas.open_group(label)
        canvas.line(plot.right + 3, at, plot.right + 15, place, "leader")
        canvas.rect(plot.right + 17, place - 4.5, 9, 9, f"bar {css}")
        canvas.text(plot.right + 31, place, shorten(label, _LONGEST_LABEL), "small", tip=label)
        canvas.close_group()


def _averaged_bracket(inputs: ReportInputs, plot: _Frame, x: Scale, last: float) -> None:
    fraction = inputs.recipe.get("search", {}).get("average_fraction")
    if not isinstance(fraction, int | float):
        return
    start, canvas, height = x(last * (1 - fraction)), plot.canvas, plot.top - 6
    canvas.line(start, height, plot.right, height, "bracket")
    for end in (start, plot.right):
        canvas.line(end, height - 3, end, height + 4, "bracket")
    canvas.text((start + plot.right) / 2, height - 10, "averaged into the answer", "dim small", anchor="middle")


def _interval(canvas: Canvas, x: Scale, middle: float, interval: tuple[float, float] | None) -> None:
    if interval is None:
        return
    low, high = interval
    canvas.line(x(low), middle, x(high), middle, "whisker")
    for end in (low, high):
        canvas.line(x(end), middle - 4, x(end), middle + 4, "whisker")


def _diamond(canvas: Canvas, across: float, middle: float, *, tip: str = "") -> None:
    size = 4.5
    points = [(across - size, middle), (across, middle - size), (across + size, middle), (across, middle + size)]
    canvas.path(points, "mark-size", close=True, tip=tip)


def _weights_legend(canvas: Canvas, plot: _Frame, *, uniform: float, has_sizes: bool, has_intervals: bool) -> None:
    at, height = plot.left, 14.0
    canvas.line(at + 4, height - 7, at + 4, height + 7, "mark-uniform")
    canvas.text(at + 12, height, f"uniform, {percent(uniform)}", "dim small")
    at += 24 + text_width(f"uniform, {percent(uniform)}")
    if has_sizes:
        _diamond(canvas, at + 5, height)
        canvas.text(at + 15, height, "proportional to size", "dim small")
        at += 27 + text_width("proportional to size")
    if has_intervals:
        canvas.line(at, height, at + 16, height, "whisker")
        for end in (at, at + 16):
            canvas.line(end, height - 4, end, height + 4, "whisker")
        canvas.text(at + 22, height, "90% interval", "dim small")


def _manifest_legend(canvas: Canvas, left: _Frame, right: _Frame) -> None:
    height = 14.0
    canvas.text(left.left, height + 16, "Tokens in the manifest", "strong")
    canvas.line(left.left + 4, height - 14, left.left + 4, height + 2, "mark-asked")
    canvas.text(left.left + 12, height - 6, "asked for: weight × budget", "dim small")
    canvas.text(right.left, height + 16, "Times each source is read", "strong")
    canvas.line(right.left + 4, height - 14, right.left + 4, height + 2, "mark-cap")
    canvas.text(right.left + 12, height - 6, "max_epochs", "dim small")


def _others(canvas: Canvas, x: Scale, y: Scale, tokens_U: Float64s, columns: dict[str, Float64s]) -> None:
    """Sources without a colour: thin lines while they can be told apart, else the band that holds the middle 80% of them."""
    if len(columns) > _MAX_THIN_LINES:
        low_U, high_U = np.quantile(np.stack(list(columns.values())), [0.1, 0.9], axis=0)
        upper, lower = _points(x, y, tokens_U, high_U), _points(x, y, tokens_U, low_U)
        tip = f"the middle 80% of {len(columns)} others"
        canvas.path(upper + lower[::-1], "band", close=True, tip=tip)
        return
    for name, values_U in columns.items():
        canvas.open_group(name)
        canvas.path(_points(x, y, tokens_U, values_U), "line thin cx", tip=name)
        canvas.close_group()
