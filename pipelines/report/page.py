"""`fastmix report`: one HTML file that holds everything, and the same plots as pictures.

The plots are SVG drawn here rather than by a plotting library in the browser: a report weighs tens of kilobytes instead of the
4.5 MB of plotly's script, is read without running a script, prints sharply, follows the reader's light or dark mode, and the
pictures of a README are the same drawings.
"""

from __future__ import annotations

from pathlib import Path

from fastmix_data.artefacts import atomic_file
from pipelines.report import words as report_text
from pipelines.report.inputs import ReportInputs, read_inputs
from pipelines.report.notes import notes, warnings
from pipelines.report.plots.drawing import draw_plots
from pipelines.report.sections import SECTIONS
from pipelines.report.small_tables import small_tables
from pipelines.report.source_table import source_table

TEMPLATES = Path(__file__).parent / "templates"
_ROWS_AT_FIRST = 40


def write_report(workdir: Path, output: Path | None = None) -> Path:
    """Write a self-contained HTML page about whatever the workdir holds; the same bytes for the same artefacts.

    Args:
        output: the file to write; `report.html` in the workdir when not given.

    Raises:
        InputError: the workdir holds nothing to report on.
        FastmixError: an artefact is damaged.
    """
    path = output if output is not None else workdir / "report.html"
    page = render_report(read_inputs(workdir))
    with atomic_file(path) as file:
        file.write(page.encode())
    return path


def report_pictures(workdir: Path, directory: Path) -> list[Path]:
    """Write each plot as an SVG file of its own and return their paths.

    Raises:
        InputError: the workdir holds nothing to report on.
        FastmixError: an artefact is damaged.
    """
    css = (TEMPLATES / "plots.css").read_text()
    paths: list[Path] = []
    for name, canvas in draw_plots(read_inputs(workdir)).items():
        paths.append(directory / f"{name}.svg")
        with atomic_file(paths[-1]) as file:
            file.write(canvas.standalone(css).encode())
    return paths


def render_report(inputs: ReportInputs) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    plots, tables, remarks = draw_plots(inputs), small_tables(inputs), notes(inputs)
    sections = [
        {
            "name": name,
            "heading": heading,
            "explanation": explanation,
            "picture": plots[name].inline() if name in plots else "",
            "table": tables.get(name),
            "notes": remarks.get(name, []),
        }
        for name, (heading, explanation) in SECTIONS.items()
        if name in plots or name in tables
    ]
    return environment.get_template("report.html.j2").render(
        title=inputs.workdir.resolve().name,
        headline=report_text.headline(inputs),
        lead=report_text.lead(inputs),
        facts=report_text.facts(inputs),
        missing=inputs.missing,
        warnings=warnings(inputs),
        sections=sections,
        table=source_table(inputs),
        grouped=report_text.grouping(inputs),
        few=_ROWS_AT_FIRST,
        provenance=report_text.provenance(inputs),
        plots_css=(TEMPLATES / "plots.css").read_text(),
        report_css=(TEMPLATES / "report.css").read_text(),
        script=(TEMPLATES / "report.js").read_text(),
    )
