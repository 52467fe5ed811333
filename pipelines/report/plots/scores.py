"""Scores of the sources over the search."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.results.trajectory import TrajectoryTable
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import colour, label_groups, label_room, named_groups
from pipelines.report.plots.lines import SearchPlot
from pipelines.report.plots.svg import Canvas

_MAX_THIN_LINES = 24


def scores_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Alignment of each source's gradient with the target's over the search."""
    labels = named_groups(inputs.sources)
    scores_UK = _smoothed(trajectory.scores_UK)
    low, high = _without_outliers(scores_UK)
    margin = 0.05 * ((high - low) or 1.0)
    plot = SearchPlot(
        "Scores over the search",
        trajectory.tokens_U,
        height=340,
        low=min(low, 0.0) - margin,
        high=max(high, 0.0) + margin,
        right=label_room(labels),
        y_label="score",
    )
    plot.canvas.line(plot.frame.left, plot.y(0), plot.frame.right, plot.y(0), "zero")
    scores = {name: scores_UK[:, trajectory.sources.index(name)] for name in inputs.sources}
    coloured = [label for label in labels if label in scores]
    others = {name: scores_U for name, scores_U in scores.items() if name not in coloured}
    _draw_others(plot, others)
    for rank, name in reversed(list(enumerate(coloured))):  # what is drawn last lies on top: the largest source
        plot.line(name, scores[name], colour(rank))
    wanted = [plot.y(float(scores[name][-1])) for name in coloured]
    if others:
        wanted.append(plot.y(float(np.median([scores_U[-1] for scores_U in others.values()]))))
    label_groups(plot.frame, labels, wanted, range(len(labels)))
    return plot.canvas


def _draw_others(plot: SearchPlot, others: dict[str, Float64s]) -> None:
    """Sources without a colour: thin lines while they can be told apart, else the band that holds the middle 80% of them."""
    if len(others) > _MAX_THIN_LINES:
        low_U, high_U = np.quantile(np.stack(list(others.values())), [0.1, 0.9], axis=0)
        plot.band(f"the middle 80% of {len(others)} others", low_U, high_U, "band")
        return
    for name, scores_U in others.items():
        plot.line(name, scores_U, "thin cx")


def _smoothed(scores_UK: Float64s) -> Float64s:
    """Running means over a twentieth of the search: single updates are noisy."""
    window = max(1, len(scores_UK) // 20)
    sums = np.cumsum(np.concatenate([np.zeros((1, scores_UK.shape[1])), scores_UK]), axis=0)
    # Of what came before only, so that a score is never shown earlier than the search knew it; shorter at the beginning.
    stops = np.arange(1, len(scores_UK) + 1)
    starts = np.maximum(stops - window, 0)
    means: Float64s = (sums[stops] - sums[starts]) / (stops - starts)[:, None]
    return means


def _without_outliers(values: Float64s) -> tuple[float, float]:
    """Range of the values, or of nearly all of them where the rest would flatten the picture."""
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = np.quantile(values, [0.005, 0.995]).tolist()
    # Scores of the first updates, on a proxy that knows nothing, can be ten times those of the rest.
    return (inner_low, inner_high) if high - low > 3 * (inner_high - inner_low) else (low, high)
