"""What a comparison came to: a table for the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from fastmix_data.artefacts import atomic_file
from fastmix_data.units import format_count
from pipelines.report.format import duration, power_of_ten
from pipelines.report.method_figures import Comparison, MethodFigures, method_figures, read_comparison
from pipelines.report.plots.comparison import comparison_plot

_HEADINGS = ("method", "target loss", "less uniform [90% interval]", "gain", "mean rank", "tokens", "FLOPs", "time")
_STYLE_SHEET = Path(__file__).parents[1] / "report" / "templates" / "plots.css"
_NOTE = (
    "target loss in nats on the half that no search saw; gain: share of what the best method gains over uniform; tokens, FLOPs and machine "
    "time of the search"
)


def mean_ranks(losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each method's rank by loss, averaged over seeds; equal losses share their ranks.

    >>> mean_ranks({"a": [1.0, 3.0], "b": [2.0, 2.0]})
    {'a': 1.5, 'b': 1.5}
    """
    ranks_MS = rankdata(np.array([list(values) for values in losses.values()]), axis=0)
    return dict(zip(losses, ranks_MS.mean(axis=1).tolist(), strict=True))


def comparison_table(path: Path) -> str:
    """The table of a `compare.json`, best method first.

    Raises:
        CorruptArtefactError: it is not one.
    """
    comparison = read_comparison(path)
    ranks = _ranks(comparison)
    rows = [_HEADINGS, *(_row(method, ranks[method.name]) for method in method_figures(comparison))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*lines, _NOTE])


def draw_comparison(path: Path) -> Path:
    """Write the picture of a `compare.json` beside it.

    Raises:
        CorruptArtefactError: it is not one.
    """
    canvas = comparison_plot(method_figures(read_comparison(path)))
    picture = path.with_suffix(".svg")
    with atomic_file(picture) as file:
        file.write(canvas.standalone(_STYLE_SHEET.read_text()).encode())
    return picture


def _ranks(comparison: Comparison) -> dict[str, float]:
    return mean_ranks({name: method.target_loss for name, method in comparison.methods.items()})


def _row(method: MethodFigures, rank: float) -> tuple[str, ...]:
    difference = f"{method.difference:+.4f}" if method.difference is not None else "-"
    interval = f" [{method.interval[0]:+.4f} {method.interval[1]:+.4f}]" if method.interval is not None else ""
    return (
        method.name,
        f"{method.mean_loss:.4f}",
        difference + interval,
        f"{100 * method.gain_share:.0f}%" if method.gain_share is not None else "-",
        f"{rank:.2f}",
        format_count(method.search_tokens) if method.search_tokens else "0",
        power_of_ten(method.search_flops),
        duration(method.search_seconds) if method.search_seconds else "0",
    )
