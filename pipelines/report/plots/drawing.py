"""The report's plots, as SVG: small, sharp at any size, the same bytes for the same numbers.

Sources keep one colour over all plots, by their rank in the mixture; from the tenth on they are grey, and where there are many
they are drawn together.
"""

from __future__ import annotations

from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.comparison import comparison_plot
from pipelines.report.plots.groups import groups_plot
from pipelines.report.plots.rows import manifest_plot, weights_plot
from pipelines.report.plots.svg import Canvas
from pipelines.report.plots.targets import target_losses_plot, target_weights_plot, weights_move
from pipelines.report.plots.time import loss_plot, mixture_plot, scores_plot


def draw_plots(inputs: ReportInputs) -> dict[str, Canvas]:
    """Every plot that the workdir's artefacts allow, by name."""
    plots: dict[str, Canvas] = {}
    if inputs.mixture is not None:
        plots["weights"] = weights_plot(inputs)
    if inputs.mixture is not None and inputs.groups:
        plots["groups"] = groups_plot(inputs)
    if inputs.compared:
        plots["compare"] = comparison_plot(inputs.compared)
    if inputs.trajectory is not None:
        plots["mixture"] = mixture_plot(inputs, inputs.trajectory)
        plots["loss"] = loss_plot(inputs, inputs.trajectory)
        if len(inputs.trajectory.targets) > 1:
            plots["targets"] = target_losses_plot(inputs.trajectory)
        if weights_move(inputs.trajectory):
            plots["target_weights"] = target_weights_plot(inputs.trajectory)
        plots["scores"] = scores_plot(inputs, inputs.trajectory)
    if inputs.manifest is not None:
        plots["manifest"] = manifest_plot(inputs)
    return plots
