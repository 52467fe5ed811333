"""`fastmix report`: one HTML file that holds everything, and the same plots as pictures.

The plots are SVG drawn here rather than by a plotting library in the browser: a report weighs tens of kilobytes instead of the
4.5 MB of plotly's script, is read without running a script, prints sharply, follows the reader's light or dark mode, and the
pictures of a README are the same drawings.
"""

from __future__ import annotations

from pathlib import Path

from fastmix_data.atomic_files import atomic_file
from fastmix_data.workdir import Workdir
from pipelines.report.inputs import ReportInputs, read_inputs
from pipelines.report.notes import notes, warnings
from pipelines.report.plots.drawing import draw_plots
from pipelines.report.plots.svg import STYLE_SHEET
from pipelines.report.sections import SECTIONS
from pipelines.report.sentences import facts, grouping, headline, lead, provenance
from pipelines.report.small_tables import small_tables
from pipelines.report.source_table import source_table

_TEMPLATES = Path(__file__).parent / "templates"
_ROWS_AT_FIRST = 40


def write_report(paths: Workdir, output: Path | None = None, *, refresh_seconds: float | None = None) -> Path:
    """Write a self-contained HTML page about whatever the workdir holds; the same bytes for the same artefacts.

    Args:
        output: the file to write; the workdir's own `report.html` when not given.
        refresh_seconds: have a browser that shows the page load it again so often.

    Raises:
        InputError: the workdir holds nothing to report on.
        FastmixError: an artefact is damaged.
    """
    path = output if output is not None else paths.report
    page = render_report(read_inputs(paths), refresh_seconds=refresh_seconds)
    with atomic_file(path) as file:
        file.write(page.encode())
    return path


def report_pictures(paths: Workdir, directory: Path) -> list[Path]:
    """Write each plot as an SVG file of its own and return their paths.

    Raises:
        InputError: the workdir holds nothing to report on.
        FastmixError: an artefact is damaged.
    """
    written = []
    for name, canvas in draw_plots(read_inputs(paths)).items():
        written.append(directory / f"{name}.svg")
        canvas.save(written[-1])
    return written


def render_report(inputs: ReportInputs, *, refresh_seconds: float | None = None) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
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
        refresh_seconds=refresh_seconds,
        title=inputs.paths.root.resolve().name,
        headline=headline(inputs),
        lead=lead(inputs),
        facts=facts(inputs),
        missing=inputs.missing,
        warnings=warnings(inputs),
        sections=sections,
        table=source_table(inputs),
        grouped=grouping(inputs),
        few=_ROWS_AT_FIRST,
        provenance=provenance(inputs),
        plots_css=STYLE_SHEET.read_text(),
        report_css=(_TEMPLATES / "report.css").read_text(),
        script=(_TEMPLATES / "report.js").read_text(),
    )
