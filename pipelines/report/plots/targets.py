"""Plots over the search with a line per target: losses, and weights where these move."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from pipelines.report.format import tick
from pipelines.report.inputs import TrajectoryTable
from pipelines.report.plots.frame import WIDTH, Frame, colour, label_groups, label_room
from pipelines.report.plots.svg import Canvas, Scale
from pipelines.report.plots.time import line_points

_MOST_LABELS = 12
_STILL = 1e-9


def weights_move(trajectory: TrajectoryTable) -> bool:
    """Whether the targets' weights change over the search, as they do under worst_case and not_worse_than."""
    return len(trajectory.targets) > 1 and float(np.ptp(trajectory.target_weights_UG, axis=0).max()) > _STILL


def target_losses_plot(trajectory: TrajectoryTable) -> Canvas:
    """Loss of each target as estimated from the batches so far."""
    losses_UG = trajectory.target_losses_UG
    finite = losses_UG[np.isfinite(losses_UG)]
    margin = 0.04 * float(np.ptp(finite) or 1)
    low, high = float(finite.min()) - margin, float(finite.max()) + margin
    return _lines(trajectory, losses_UG, low=low, high=high, title="Losses of the targets over the search", unit="nats per token")


def target_weights_plot(trajectory: TrajectoryTable) -> Canvas:
    """Weight of each target at every update."""
    weights_UG = trajectory.target_weights_UG
    high = 1.04 * float(weights_UG.max())
    return _lines(trajectory, weights_UG, low=0.0, high=high, title="Weights of the targets over the search", unit="weight")


def _lines(trajectory: TrajectoryTable, values_UG: Float64s, *, low: float, high: float, title: str, unit: str) -> Canvas:
    canvas = Canvas(WIDTH, 300, title)
    order = sorted(range(len(trajectory.targets)), key=lambda target: -_last(values_UG[:, target]))
    labelled = [target for target in order if np.isfinite(values_UG[:, target]).any()][:_MOST_LABELS]
    plot = Frame(canvas, left=56, right=label_room(trajectory.targets), top=34, bottom=44)
    x, y = Scale(0, trajectory.tokens_U[-1], plot.left, plot.right), Scale(low, high, plot.bottom, plot.top)
    plot.axes(x, y, x_label="tokens seen by the proxy", x_format=tick, y_format=lambda value: f"{value:g}", y_label=unit)
    for target in reversed(order):
        name = trajectory.targets[target]
        points = line_points(x, y, trajectory.tokens_U, values_UG[:, target])
        if points:
            canvas.open_group(name)
            canvas.path(points, f"line {colour(target)}", tip=name)
            canvas.close_group()
    label_groups(
        canvas,
        plot,
        [trajectory.targets[target] for target in labelled],
        [y(_last(values_UG[:, target])) for target in labelled],
        colours=[colour(target) for target in labelled],
    )
    return canvas


def _last(values_U: Float64s) -> float:
    """The last value that there is; below everything where there is none."""
    found = values_U[np.isfinite(values_U)]
    return float(found[-1]) if len(found) else -np.inf
