"""Plots over the search: the mixture, losses and scores by tokens that the proxy has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmix_data.arrays import Float64s
from pipelines.report.format import tick
from pipelines.report.inputs import ReportInputs, TrajectoryTable
from pipelines.report.plots.frame import LABEL_GAP, NUM_COLOURS, WIDTH, Frame, colour, label_groups, label_room, named_groups
from pipelines.report.plots.svg import Canvas, Scale, path_of, spread_labels

_MAX_THIN_LINES = 24
_MAX_POINTS = 240


def sparkline(values_U: Float64s, *, css: str) -> str:
    """A weight over time, for a table's cell; scaled to its own largest value."""
    thinned = values_U[_thin(len(values_U), 24)]
    across, up = Scale(0, max(len(thinned) - 1, 1), 1, 71), Scale(0, float(thinned.max()) or 1.0, 17, 2)
    points = [(across(number), up(value)) for number, value in enumerate(thinned.tolist())]
    return f'<svg class="spark" viewBox="0 0 72 18" aria-hidden="true"><path class="line {css}" d="{path_of(points)}"/></svg>'


def mixture_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Shares of all sources over the search, stacked: the largest on top, then the rest together or by group."""
    canvas = Canvas(WIDTH, 380, "Mixture over the search")
    tokens_U, weights_UK = _with_start(inputs, trajectory)
    chosen = _thin(len(tokens_U), _MAX_POINTS)
    bands = _bands(inputs)
    labels = list(bands)
    plot = Frame(canvas, right=label_room(labels), top=26, bottom=44)
    x, y = Scale(0, tokens_U[-1], plot.left, plot.right), Scale(0, 1, plot.bottom, plot.top)
    plot.axes(x, y, x_label="tokens seen by the proxy", x_format=tick, y_format=lambda value: f"{100 * value:.0f}%")
    number = {name: at for at, name in enumerate(trajectory.sources)}
    members = [[number[name] for name in names] for names in bands.values()]
    bands_UG = np.stack([weights_UK[chosen][:, columns].sum(axis=1) for columns in members], axis=1)
    tops_UG = 1 - np.concatenate([np.zeros((len(chosen), 1)), np.cumsum(bands_UG, axis=1)], axis=1)
    pixels = [x(value) for value in tokens_U[chosen]]
    middles: list[float] = []
    for group, label in enumerate(labels):
        upper = list(zip(pixels, map(y, tops_UG[:, group]), strict=True))
        lower = list(zip(pixels, map(y, tops_UG[:, group + 1]), strict=True))
        canvas.open_group(label)
        canvas.path(upper + lower[::-1], f"area {colour(group)}", close=True, tip=label)
        canvas.close_group()
        middles.append((upper[-1][1] + lower[-1][1]) / 2)
    _averaged_bracket(inputs, plot, x, tokens_U[-1])
    label_groups(canvas, plot, labels, middles)
    return canvas


def loss_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Target loss on the fresh batches of the search, training loss, and the fixed samples before and after."""
    canvas = Canvas(WIDTH, 320, "Loss over the search")
    plot = Frame(canvas, left=50, right=240, top=34, bottom=44)
    ends = inputs.mixture.target_loss if inputs.mixture is not None else {}
    series = (("target, each update's batch", trajectory.target_loss_U, "c0"), ("training data", trajectory.train_loss_U, "cx"))
    values = np.concatenate([trajectory.target_loss_U, trajectory.train_loss_U, list(ends.values())])
    values = values[np.isfinite(values)]
    margin = 0.04 * float(values.max() - values.min() or 1)
    x = Scale(0, trajectory.tokens_U[-1], plot.left, plot.right)
    y = Scale(float(values.min()) - margin, float(values.max()) + margin, plot.bottom, plot.top)
    plot.axes(
        x, y, x_label="tokens seen by the proxy", x_format=tick, y_format=lambda value: f"{value:g}", y_label="nats per token"
    )
    labels: list[tuple[str, float, str, str]] = []
    for label, losses_U, css in series:
        canvas.path(line_points(x, y, trajectory.tokens_U, losses_U), f"line thick {css}", tip=label)
        labels.append((label, y(float(losses_U[-1])), "line", f"line thick {css}"))
    for half, label, css in (("search", "target, search half", "dot c0"), ("unseen", "target, unseen half", "ring")):
        for key, at in ((f"{half}_start", plot.left), (f"{half}_end", plot.right)):
            if key in ends:
                canvas.circle(at, y(ends[key]), 5, css, tip=f"{label}: {ends[key]:.3f}")
        if f"{half}_end" in ends:
            labels.append((f"{label}: {ends[f'{half}_end']:.3f}", y(ends[f"{half}_end"]), "dot", css))
    _loss_labels(plot, labels)
    return canvas


def scores_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Alignment of each source's gradient with the target's over the search."""
    canvas = Canvas(WIDTH, 340, "Scores over the search")
    labels = named_groups(inputs.sources)
    plot = Frame(canvas, left=56, right=label_room(labels), top=34, bottom=44)
    scores_UK = _smoothed(trajectory.scores_UK)
    low, high = _without_outliers(scores_UK)
    margin = 0.05 * ((high - low) or 1.0)
    x = Scale(0, trajectory.tokens_U[-1], plot.left, plot.right)
    y = Scale(min(low, 0.0) - margin, max(high, 0.0) + margin, plot.bottom, plot.top)
    plot.axes(x, y, x_label="tokens seen by the proxy", x_format=tick, y_format=lambda value: f"{value:g}", y_label="score")
    canvas.line(plot.left, y(0), plot.right, y(0), "zero")
    columns = {name: scores_UK[:, trajectory.sources.index(name)] for name in inputs.sources}
    coloured = [label for label in labels if label in columns]
    others = [name for name in inputs.sources if name not in coloured]
    _others(canvas, x, y, trajectory.tokens_U, {name: columns[name] for name in others})
    for rank in reversed(range(len(coloured))):
        canvas.open_group(coloured[rank])
        points = line_points(x, y, trajectory.tokens_U, columns[coloured[rank]])
        canvas.path(points, f"line {colour(rank)}", tip=coloured[rank])
        canvas.close_group()
    wanted = [y(float(columns[name][-1])) for name in coloured]
    if others:
        wanted.append(y(float(np.median([columns[name][-1] for name in others]))))
    label_groups(canvas, plot, labels, wanted)
    return canvas


def _thin(count: int, at_most: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Indices of at most so many evenly spaced rows, the first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(np.intp))


def line_points(x: Scale, y: Scale, across: Float64s, up: Float64s) -> list[tuple[float, float]]:
    """Pixels of a line, thinned; values that are not numbers are left out."""
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


def _without_outliers(values: Float64s) -> tuple[float, float]:
    """Range of the values, or of nearly all of them where the rest would flatten the picture."""
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = np.quantile(values, [0.005, 0.995]).tolist()
    return (inner_low, inner_high) if high - low > 3 * (inner_high - inner_low) else (low, high)


def _bands(inputs: ReportInputs) -> dict[str, list[str]]:
    """Sources of each band by its label; where there are too many to name, the rest of each group is a band if these are few."""
    labels = named_groups(inputs.sources)
    named = [label for label in labels if label in inputs.sources]
    bands = {name: [name] for name in named}
    if len(named) == len(inputs.sources):
        return bands
    rests = [(group.label, [name for name in group.sources if name not in bands]) for group in inputs.groups]
    rests = [(label, names) for label, names in rests if names]
    if not rests or len(rests) > NUM_COLOURS:
        return {**bands, labels[-1]: [name for name in inputs.sources if name not in bands]}
    sizes = {
        label: sum(inputs.mixture.weights[name] for name in names) if inputs.mixture else len(names) for label, names in rests
    }
    ordered = sorted(rests, key=lambda rest: -sizes[rest[0]])
    return bands | {f"{label}: {len(names)} others" if len(names) > 1 else names[0]: names for label, names in ordered}


def _loss_labels(plot: Frame, labels: Sequence[tuple[str, float, str, str]]) -> None:
    """Write (text, wanted height, kind of sample, CSS classes) beside the plot."""
    canvas = plot.canvas
    places = spread_labels([wanted for _, wanted, _, _ in labels], gap=LABEL_GAP + 2, low=plot.top + 6, high=plot.bottom - 6)
    for (label, wanted, kind, css), place in zip(labels, places, strict=True):
        canvas.line(plot.right + 8, wanted, plot.right + 18, place, "leader")
        if kind == "line":
            canvas.path([(plot.right + 22, place), (plot.right + 36, place)], css)
        else:
            canvas.circle(plot.right + 29, place, 4.5, css)
        canvas.text(plot.right + 42, place, label, "small")


def _averaged_bracket(inputs: ReportInputs, plot: Frame, x: Scale, last: float) -> None:
    fraction = inputs.recipe.get("search", {}).get("average_fraction")
    if not isinstance(fraction, int | float):
        return
    start, canvas, height = x(last * (1 - fraction)), plot.canvas, plot.top - 6
    canvas.line(start, height, plot.right, height, "bracket")
    for end in (start, plot.right):
        canvas.line(end, height - 3, end, height + 4, "bracket")
    canvas.text((start + plot.right) / 2, height - 10, "averaged into the answer", "dim small", anchor="middle")


def _others(canvas: Canvas, x: Scale, y: Scale, tokens_U: Float64s, columns: dict[str, Float64s]) -> None:
    """Sources without a colour: thin lines while they can be told apart, else the band that holds the middle 80% of them."""
    if len(columns) > _MAX_THIN_LINES:
        low_U, high_U = np.quantile(np.stack(list(columns.values())), [0.1, 0.9], axis=0)
        upper, lower = line_points(x, y, tokens_U, high_U), line_points(x, y, tokens_U, low_U)
        tip = f"the middle 80% of {len(columns)} others"
        canvas.path(upper + lower[::-1], "band", close=True, tip=tip)
        return
    for name, values_U in columns.items():
        canvas.open_group(name)
        canvas.path(line_points(x, y, tokens_U, values_U), "line thin cx", tip=name)
        canvas.close_group()
