"""What a comparison came to: a table for the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from fastmix_data.results.comparison import REFERENCE, Comparison
from fastmix_data.text_table import aligned
from fastmix_data.units import format_count
from pipelines.report.format import duration, power_of_ten
from pipelines.report.method_figures import MethodFigures, method_figures
from pipelines.report.plots.comparison import comparison_plot

_HEADINGS = ("method", "target loss", f"less {REFERENCE} [90% interval]", "gain", "mean rank", "tokens", "FLOPs", "time")
_NOTE = (
    f"target loss in nats on the half that no search saw; gain: share of what the best method gains over {REFERENCE}; tokens, FLOPs and "
    "machine time of the search"
)


def mean_ranks(losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each method's rank by loss, averaged over seeds; equal losses share their ranks.

    >>> mean_ranks({"a": [1.0, 3.0], "b": [2.0, 2.0]})
    {'a': 1.5, 'b': 1.5}
    """
    ranks_MS = rankdata(np.array([list(values) for values in losses.values()]), axis=0)
    return dict(zip(losses, ranks_MS.mean(axis=1).tolist(), strict=True))


def comparison_table(comparison: Comparison) -> str:
    """The table of a comparison, best method first."""
    ranks = mean_ranks({name: method.target_loss for name, method in comparison.methods.items()})
    rows = [_HEADINGS, *(_cells(method, ranks[method.name]) for method in method_figures(comparison))]
    return f"{aligned(rows)}\n{_NOTE}"


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Write the picture of a comparison."""
    comparison_plot(method_figures(comparison)).save(path)


def _cells(method: MethodFigures, rank: float) -> tuple[str, ...]:
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
