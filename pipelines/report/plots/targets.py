"""Plots over the search with a line per target: losses, and weights where these move."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.results.trajectory import TrajectoryTable
from pipelines.report.plots.frame import colour, label_groups, label_room
from pipelines.report.plots.lines import SearchPlot
from pipelines.report.plots.svg import Canvas

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
    right = label_room(trajectory.targets)
    plot = SearchPlot(title, trajectory.tokens_U, height=300, low=low, high=high, right=right, y_label=unit)
    # An estimate that is there once stays there: a target without one at the end was in no batch at all.
    last_G = values_UG[-1]
    drawn = sorted(np.flatnonzero(np.isfinite(last_G)).tolist(), key=lambda target: -last_G[target])
    for target in reversed(drawn):
        plot.line(trajectory.targets[target], values_UG[:, target], colour(target))
    labelled = drawn[:_MOST_LABELS]
    names = [trajectory.targets[target] for target in labelled]
    label_groups(plot.frame, names, [plot.y(last_G[target]) for target in labelled], labelled)
    return plot.canvas
