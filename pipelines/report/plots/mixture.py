"""The mixture over the search: a band for each source, stacked."""

from __future__ import annotations

import numpy as np

from fastmix_data.results.trajectory import TrajectoryTable
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import NUM_COLOURS, colour, label_groups, label_room, named_groups
from pipelines.report.plots.lines import SearchPlot
from pipelines.report.plots.svg import Canvas


def mixture_plot(inputs: ReportInputs, trajectory: TrajectoryTable) -> Canvas:
    """Shares of all sources over the search, stacked: the largest on top, then the rest together or by group."""
    bands, sources = _bands(inputs), trajectory.sources
    tokens_U, weights_UK = trajectory.tokens_U, trajectory.weights_UK
    start = inputs.mixture.start.weights if inputs.mixture is not None else {}
    if start:  # the trajectory begins after the first update
        tokens_U = np.concatenate([[0.0], tokens_U])
        weights_UK = np.concatenate([[[start[name] for name in sources]], weights_UK])
    members = [[sources.index(name) for name in names] for names in bands.values()]
    bands_UG = np.stack([weights_UK[:, columns].sum(axis=1) for columns in members], axis=1)
    tops_UG = 1 - np.concatenate([np.zeros((len(tokens_U), 1)), np.cumsum(bands_UG, axis=1)], axis=1)
    plot = SearchPlot(
        "Mixture over the search",
        tokens_U,
        height=380,
        low=0,
        high=1,
        left=46,
        right=label_room(bands),
        top=26,
        y_format=lambda value: f"{100 * value:.0f}%",
    )
    middles = []
    for rank, label in enumerate(bands):
        upper_U, lower_U = tops_UG[:, rank], tops_UG[:, rank + 1]
        with plot.canvas.group(label):
            plot.band(label, lower_U, upper_U, f"area {colour(rank)}")
        middles.append((plot.y(upper_U[-1]) + plot.y(lower_U[-1])) / 2)
    if inputs.recipe is not None and inputs.progress is None:  # of a search that runs, nobody knows yet which part that will be
        is_answer = inputs.trials is None or inputs.trials.winner == "scores"
        _averaged_bracket(
            plot, inputs.recipe.search.average_fraction, f"averaged {'into the answer' if is_answer else 'and tried'}"
        )
    label_groups(plot.frame, list(bands), middles, range(len(bands)))
    return plot.canvas


def _bands(inputs: ReportInputs) -> dict[str, list[str]]:
    """Sources of each band by its label; where there are too many to name, the rest of each group is a band if these are few."""
    labels = named_groups(inputs.sources)
    bands = {label: [label] for label in labels if label in inputs.sources}
    if len(bands) == len(inputs.sources):
        return bands
    rests = [(group.label, [name for name in group.sources if name not in bands]) for group in inputs.groups]
    rests = [(label, names) for label, names in rests if names]
    if not rests or len(rests) > NUM_COLOURS:
        return {**bands, labels[-1]: [name for name in inputs.sources if name not in bands]}
    weights = inputs.mixture.weights if inputs.mixture is not None else dict.fromkeys(inputs.sources, 1.0)
    rests.sort(key=lambda rest: -sum(weights[name] for name in rest[1]))
    return bands | {f"{label}: {len(names)} others" if len(names) > 1 else names[0]: names for label, names in rests}


def _averaged_bracket(plot: SearchPlot, fraction: float, label: str) -> None:
    """Mark the part of the search whose mean the scores propose."""
    frame, canvas, height = plot.frame, plot.canvas, plot.frame.top - 6
    start = plot.x(float(plot.tokens_U[-1]) * (1 - fraction))
    canvas.line(start, height, frame.right, height, "bracket")
    for end in (start, frame.right):
        canvas.line(end, height - 3, end, height + 4, "bracket")
    canvas.text((start + frame.right) / 2, height - 10, label, "dim small", anchor="middle")
