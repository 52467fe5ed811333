"""Tables of benchmarks, in Markdown. A cell is of units: searches or swarms, each with the mean loss of the proxies that confirmed it.

What a search or swarm found is one draw, however often it is confirmed: proxies that confirm one mixture do not count one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.report.method_figures import mean_interval


def mean_cell(values_U: np.ndarray) -> str:
    """The mean over units with the half-width of its 90% interval, where there are two of them or more.

    >>> mean_cell(np.array([1.0, 2.0, 3.0])), mean_cell(np.array([-1.0]))
    ('+2.000 ± 1.686', '-1.000')
    """
    interval = mean_interval(values_U.tolist())
    half = f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval is not None else ""
    return f"{values_U.mean():+.3f}{half}"


def side_of_zero(values_U: np.ndarray) -> int:
    """-1 or 1 where the 90% interval of the mean over units lies on one side of 0, else 0."""
    interval = mean_interval(values_U.tolist())
    return 0 if interval is None or interval[0] <= 0 <= interval[1] else int(np.sign(interval[0]))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
