"""A swarm as two CSV files: mixtures of runs, and what was measured of each; refused where a row cannot be what it says.

The format is Olmix's: columns that name the run (`run`, `run_id`, `index`, `name`), an unnamed first column at will, then one column per
source or metric. Tables of RegMix have it too.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.errors import InputError
from fastmix_data.messages import and_more, first_line, nearest

_ID_COLUMNS = ("run", "run_id", "index", "name")  # the first that both files have joins them
_ROUNDING = 0.0005  # of a weight that is written with three decimals
_LEAST_RUNS = 8


@dataclass(frozen=True, eq=False)
class Swarm:
    """Mixtures that were trained on, and what came of each.

    Attributes:
        runs: names of the runs, N.
        sources: names of the sources, K.
        weights_NK: shares, shape (N, K); each row sums to 1.
        measured_GN: the metrics that were asked for, shape (G, N).
        num_rounded: rows that did not sum to 1 to the last digit and were normalised.
    """

    runs: tuple[str, ...]
    sources: tuple[str, ...]
    weights_NK: Float64s
    measured_GN: Float64s
    num_rounded: int


@dataclass(frozen=True)
class Table:
    """Cells of a file as text: by line of the file, each a mapping from column to cell."""

    path: Path
    columns: tuple[str, ...]
    rows: dict[int, dict[str, str]]

    @property
    def values(self) -> tuple[str, ...]:
        """Columns that name no run."""
        return tuple(name for name in self.columns if name not in ("", *_ID_COLUMNS))

    def numbers(self) -> Float64s:
        """Cells of these columns, shape (rows, columns).

        Raises:
            InputError: one is no finite number.
        """
        return np.array([[_number(self, line, name) for name in self.values] for line in self.rows])


def read_swarm(ratios_path: Path, metrics_path: Path, *, targets: Sequence[str]) -> Swarm:
    """Read the mixtures of a swarm and some of its metrics; every other metric may have gaps.

    Raises:
        InputError: a file is no such table, has no such metric, or a row is wrong; names the file and the line.
    """
    ratios, metrics = read_table(ratios_path), read_table(metrics_path)
    _check_targets(metrics, targets)
    if len(ratios.values) < 2:
        raise InputError(ratios_path, "has fewer than two columns of sources", "write one column for each source")
    key = next((name for name in _ID_COLUMNS if name in ratios.columns and name in metrics.columns), None)
    if key is None:
        remedy = f"give both a column {' or '.join(_ID_COLUMNS)}"
        raise InputError(ratios_path, f"has no column in common with {metrics_path} that names the run", remedy)
    line_of, metric_line_of = _lines_by_run(ratios, key), _lines_by_run(metrics, key)
    for here, there, lines in ((ratios, metric_line_of, line_of), (metrics, line_of, metric_line_of)):
        for run, line in lines.items():
            if run not in there:
                other = metrics_path if here is ratios else ratios_path
                raise InputError(_where(here, line), f"{key} {run} has no row in {other}", "add it there, or remove it here")
    if len(line_of) < _LEAST_RUNS:
        raise InputError(ratios_path, f"has {len(line_of)} runs, and a fit needs {_LEAST_RUNS} or more", "train more mixtures")
    shares = [_shares(ratios, line) for line in line_of.values()]
    measured_NG = [[_number(metrics, metric_line_of[run], name) for name in targets] for run in line_of]
    weights_NK, measured_GN = np.array([weights for weights, _ in shares]), np.array(measured_NG).T
    for name, values_N in zip(targets, measured_GN, strict=True):
        if np.ptp(values_N) == 0:
            raise InputError(
                metrics_path, f"{name} is {values_N[0]:g} in every run", "choose a metric that depends on the mixture"
            )
    if np.ptp(weights_NK, axis=0).max() == 0:
        raise InputError(ratios_path, "every run has the same mixture", "a fit needs runs on different ones")
    return Swarm(tuple(line_of), ratios.values, weights_NK, measured_GN, sum(rounded for _, rounded in shares))


def read_table(path: Path) -> Table:
    """Read a CSV file with a header.

    Raises:
        InputError: it is none, is empty, or a row has more or fewer cells than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = tuple(name.strip() for name in next(reader, []))
            rows = dict(_filled_rows(reader))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read as CSV ({first_line(error)})", "give a comma-separated table in UTF-8") from error
    named = [name for name in columns if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise InputError(path, f"has two columns {twice}", "rename or remove one")
    if "" in columns[1:]:
        raise InputError(
            path, f"column {columns.index('', 1) + 1} has no name", "only the first may lack one; name it or remove it"
        )
    if not rows:
        raise InputError(path, "has no rows", "write a header and one row for each run")
    for line, cells in rows.items():
        if len(cells) != len(columns):
            what = f"has {len(cells)} cells, the header has {len(columns)}"
            raise InputError(f"{path}, line {line}", what, "write one for each column")
    return Table(path, columns, {line: dict(zip(columns, cells, strict=True)) for line, cells in rows.items()})


def _filled_rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line that they end in; blank lines are none."""
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells


def _check_targets(metrics: Table, targets: Sequence[str]) -> None:
    for name in targets:
        if targets.count(name) > 1:
            raise InputError(f"--target {name}", "is given twice", "remove one")
        if name not in metrics.values:
            likely = nearest(name, metrics.values)
            remedy = f"did you mean {likely}?" if likely else f"there are {and_more(metrics.values)}"
            raise InputError(f"--target {name}", f"{metrics.path} has no such column", remedy)


def _lines_by_run(table: Table, key: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    for line, cells in table.rows.items():
        run = cells[key].strip()
        if not run:
            raise InputError(_where(table, line), f"its {key} is empty", "name the run")
        if run in lines:
            raise InputError(_where(table, line), f"{key} {run} stands in line {lines[run]} already", "keep one row for each run")
        lines[run] = line
    return lines


def _shares(ratios: Table, line: int) -> tuple[Float64s, bool]:
    """The mixture of a row, normalised, shape (K,), and whether that changed it."""
    weights_K = np.array([_number(ratios, line, name) for name in ratios.values])
    for name, weight in zip(ratios.values, weights_K.tolist(), strict=True):
        if weight < 0:
            raise InputError(_where(ratios, line), f"{name} is {weight:g}, which is no share", "use numbers from 0 to 1")
    total = float(weights_K.sum())
    if abs(total - 1) > _ROUNDING * len(weights_K) + 1e-9:
        remedy = "divide the row by 100" if abs(total - 100) < 2 else f"divide the row by {total:.6g}, or correct it"
        raise InputError(_where(ratios, line), f"its shares sum to {total:.6g}, not 1", remedy)
    return weights_K / total, abs(total - 1) > 1e-9


def _number(table: Table, line: int, column: str) -> float:
    text = table.rows[line][column].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problem = f"{column} is {text!r}, not a number" if text else f"{column} is empty"
        raise InputError(_where(table, line), problem, "write a number, or remove the run from both files")
    return value


def _where(table: Table, line: int) -> str:
    return f"{table.path}, line {line}"
