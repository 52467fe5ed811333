"""Losses over the search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmix_data.results.trajectory import TrajectoryTable
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import LABEL_GAP
from pipelines.report.plots.lines import SearchPlot
from pipelines.report.plots.svg import Canvas, spread_labels


def loss_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Target loss on the fresh batches of the search, training loss, and the fixed samples before and after."""
    ends = inputs.target.loss
    series = (("target, each update's batch", trajectory.target_loss_U, "c0"), ("training data", trajectory.train_loss_U, "cx"))
    values = np.concatenate([trajectory.target_loss_U, trajectory.train_loss_U, list(ends.values())])
    values = values[np.isfinite(values)]
    margin = 0.04 * float(values.max() - values.min() or 1)
    plot = SearchPlot(
        "Loss over the search",
        trajectory.tokens_U,
        height=320,
        low=float(values.min()) - margin,
        high=float(values.max()) + margin,
        left=50,
        right=240,
        y_label="nats per token",
    )
    labels: list[tuple[str, float, str, str]] = []
    for label, losses_U, css in series:
        plot.canvas.path(plot.points(losses_U), f"line thick {css}", tip=label)
        labels.append((label, plot.y(float(losses_U[-1])), "line", f"line thick {css}"))
    for half, label, css in (("search", "target, search half", "dot c0"), ("unseen", "target, unseen half", "ring")):
        for key, at in ((f"{half}_start", plot.frame.left), (f"{half}_end", plot.frame.right)):
            if key in ends:
                plot.canvas.circle(at, plot.y(ends[key]), 5, css, tip=f"{label}: {ends[key]:.3f}")
        if f"{half}_end" in ends:
            labels.append((f"{label}: {ends[f'{half}_end']:.3f}", plot.y(ends[f"{half}_end"]), "dot", css))
    _loss_labels(plot, labels)
    return plot.canvas


def _loss_labels(plot: SearchPlot, labels: Sequence[tuple[str, float, str, str]]) -> None:
    """Write (text, wanted height, kind of sample, CSS classes) beside the plot."""
    canvas, frame = plot.canvas, plot.frame
    wanted = [height for _, height, _, _ in labels]
    places = spread_labels(wanted, gap=LABEL_GAP + 2, low=frame.top + 6, high=frame.bottom - 6)
    for (label, height, kind, css), place in zip(labels, places, strict=True):
        canvas.line(frame.right + 8, height, frame.right + 18, place, "leader")
        if kind == "line":
            canvas.path([(frame.right + 22, place), (frame.right + 36, place)], css)
        else:
            canvas.circle(frame.right + 29, place, 4.5, css)
        canvas.text(frame.right + 42, place, label, "small")
