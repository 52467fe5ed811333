"""The report's plots, as SVG: small, sharp at any size, the same bytes for the same numbers.

Sources keep one colour over all plots, by their rank in the mixture; from the tenth on they are grey, and where there are many
they are drawn together.
"""

from __future__ import annotations

from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.comparison import comparison_plot
from pipelines.report.plots.groups import groups_plot
from pipelines.report.plots.loss import loss_plot
from pipelines.report.plots.manifest import manifest_plot
from pipelines.report.plots.mixture import mixture_plot
from pipelines.report.plots.scores import scores_plot
from pipelines.report.plots.svg import Canvas
from pipelines.report.plots.targets import target_losses_plot, target_weights_plot, weights_move
from pipelines.report.plots.weights import weights_plot


def draw_plots(inputs: ReportInputs) -> dict[str, Canvas]:
    """Every plot that the workdir's artefacts allow, by name."""
    mixture, trajectory, manifest = inputs.mixture, inputs.trajectory, inputs.manifest
    plots: dict[str, Canvas] = {}
    if mixture is not None:
        plots["weights"] = weights_plot(inputs, mixture)
        if inputs.groups:
            plots["groups"] = groups_plot(inputs, mixture)
    if inputs.compared:
        plots["compare"] = comparison_plot(inputs.compared)
    if trajectory is not None:
        plots["mixture"] = mixture_plot(inputs, trajectory)
        plots["loss"] = loss_plot(inputs, trajectory)
        if len(trajectory.targets) > 1:
            plots["targets"] = target_losses_plot(trajectory)
        if weights_move(trajectory):
            plots["target_weights"] = target_weights_plot(trajectory)
        plots["scores"] = scores_plot(inputs, trajectory)
    if manifest is not None:
        plots["manifest"] = manifest_plot(inputs, manifest)
    return plots
