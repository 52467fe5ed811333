"""The table of sources: every number of every source, with the sums of each group."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipelines.report.format import percent, times, tokens
from pipelines.report.groups import SourceGroup
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import colour
from pipelines.report.plots.time import sparkline


@dataclass(frozen=True)
class Cell:
    """A cell of the table: what is shown, and the number it is sorted by."""

    text: str = ""
    value: float | None = None
    picture: str = ""
    marked: bool = False

    @property
    def sorted_by(self) -> str:
        """The number as text; its tenth digit does not matter for the order."""
        return "" if self.value is None else f"{self.value:.9g}"


@dataclass(frozen=True)
class Column:
    """A column: `key` names it in the address of the page; cells by source, and by group for the sums."""

    key: str
    text: str
    hint: str
    cells: dict[str, Cell]
    sums: dict[str, Cell] = field(default_factory=dict)
    sortable: bool = True


@dataclass(frozen=True)
class Row:
    """A row, of a source or of a group: the cells after its name."""

    name: str
    colour: str
    cells: list[Cell]


@dataclass(frozen=True)
class RowGroup:
    """Rows that belong together, with the row of their sums; no such row where sources are not grouped."""

    name: str
    label: str
    sums: Row | None
    rows: list[Row]


@dataclass(frozen=True)
class SourceTable:
    """The table of sources and the same numbers with all digits."""

    columns: list[Column]
    groups: list[RowGroup]
    csv: str
    sorted_by: str

    @property
    def num_rows(self) -> int:
        """Number of sources."""
        return sum(len(group.rows) for group in self.groups)


def source_table(inputs: ReportInputs) -> SourceTable:
    """A row per source with everything that is known of it, by falling weight or else size."""
    columns = [column for make in (_search_columns, _size_columns, _manifest_columns) for column in make(inputs)]
    ranks = {name: rank for rank, name in enumerate(inputs.sources)}
    groups = []
    for group in inputs.groups or (SourceGroup("", inputs.sources),):
        sums = (
            Row(_with_bounds(group), "", [column.sums.get(group.name, Cell()) for column in columns]) if inputs.groups else None
        )
        rows = [Row(name, colour(ranks[name]), [column.cells[name] for column in columns]) for name in group.sources]
        groups.append(RowGroup(group.name, group.label, sums, rows))
    return SourceTable(columns, groups, _csv(inputs), "weight" if inputs.mixture is not None else "unique")


def _with_bounds(group: SourceGroup) -> str:
    bounds = [f"at least {percent(group.low)}"] if group.low > 0 else []
    bounds += [f"at most {percent(group.high)}"] if group.high < 1 else []
    number = f"{len(group.sources)} source{'s' if len(group.sources) > 1 else ''}"
    return ", ".join([number, *bounds])


def _numbers(
    inputs: ReportInputs,
    key: str,
    text: str,
    hint: str,
    *,
    values: Mapping[str, float],
    show: Callable[[float], str],
    total: Callable[[SourceGroup], float] | None = None,
    marked: frozenset[str] = frozenset(),
) -> Column:
    """A column of numbers; sources without one have an empty cell."""
    cells = {
        name: Cell(show(values[name]), values[name], marked=name in marked) if name in values else Cell()
        for name in inputs.sources
    }
    sums: dict[str, Cell] = {}
    if total is not None:
        for group in inputs.groups:
            value = total(group)
            sums[group.name] = Cell(show(value), value)
    return Column(key, text, hint, cells, sums)


def _sum_of(values: Mapping[str, float]) -> Callable[[SourceGroup], float]:
    return lambda group: sum(values.get(name, 0.0) for name in group.sources)


def _search_columns(inputs: ReportInputs) -> list[Column]:
    """What the search found."""
    mixture, num_sources = inputs.mixture, len(inputs.sources)
    columns = [_over_the_search(inputs)] if inputs.trajectory is not None else []
    if mixture is None:
        return columns
    weights = mixture.weights
    columns.append(
        _numbers(inputs, "weight", "weight", "share of training tokens", values=weights, show=percent, total=_sum_of(weights))
    )
    if mixture.interval:
        cells = {name: _interval_cell(mixture.interval.get(name)) for name in inputs.sources}
        columns.append(Column("interval", "90% interval", "of the weight; sorted by its width", cells))
    columns += _certainty_columns(inputs)
    ratios = {name: weight * num_sources for name, weight in weights.items()}
    columns.append(
        _numbers(
            inputs,
            "uniform",
            "÷ uniform",
            "weight over that of an equal share",
            values=ratios,
            show=times,
            total=lambda group: sum(ratios[name] for name in group.sources) / len(group.sources),
        )
    )
    return columns


def _certainty_columns(inputs: ReportInputs) -> list[Column]:
    """How far to trust a weight, and what holds it where it is."""
    certainty, binding, sources = inputs.certainty, inputs.binding, inputs.sources
    columns = []
    if certainty.seed_interval:
        cells = {name: _interval_cell(certainty.seed_interval.get(name)) for name in sources}
        columns.append(Column("seeds", "over seeds", "90% interval for the weight of one more seed; sorted by its width", cells))
    if certainty.signal_to_noise:
        hint = "of the source's score against the mixture's; below 2 in size they cannot be told apart"
        ratios = certainty.signal_to_noise
        columns.append(_numbers(inputs, "signal", "signal to noise", hint, values=ratios, show=lambda value: f"{value:+.1f}"))
    if certainty.interchangeable:
        set_of = {name: number for number, names in enumerate(certainty.interchangeable, 1) for name in names}
        alike = {name: Cell(f"set {set_of[name]}", set_of[name]) if name in set_of else Cell() for name in sources}
        columns.append(Column("alike", "inter\u00adchangeable", "sources of a set cannot be told apart by their scores", alike))
    if binding:
        kinds = sorted(set(binding.values()))
        held = {
            name: Cell(binding[name], kinds.index(binding[name]), marked=True) if name in binding else Cell() for name in sources
        }
        sums = {
            group.name: Cell(binding[group.name], kinds.index(binding[group.name]), marked=True)
            for group in inputs.groups
            if group.name in inputs.constrained_groups and group.name in binding
        }
        columns.append(Column("held", "held at", "the bound of the recipe that a weight lies at", held, sums))
    return columns


def _over_the_search(inputs: ReportInputs) -> Column:
    trajectory = inputs.trajectory
    assert trajectory is not None
    number = {name: at for at, name in enumerate(trajectory.sources)}
    cells = {
        name: Cell(picture=sparkline(trajectory.weights_UK[:, number[name]], css=colour(rank)))
        for rank, name in enumerate(inputs.sources)
    }
    sums = {
        group.name: Cell(
            picture=sparkline(trajectory.weights_UK[:, [number[name] for name in group.sources]].sum(axis=1), css="cx")
        )
        for group in inputs.groups
    }
    return Column("course", "over the search", "weight, scaled to its own largest value", cells, sums, sortable=False)


def _interval_cell(interval: tuple[float, float] | None) -> Cell:
    if interval is None:
        return Cell()
    return Cell(f"{percent(interval[0])} – {percent(interval[1])}", interval[1] - interval[0])


def _size_columns(inputs: ReportInputs) -> list[Column]:
    """What there is to train on."""
    sizes, shares = inputs.sizes, inputs.size_shares
    if not sizes:
        return []
    return [
        _numbers(inputs, "unique", "unique tokens", "in the catalog", values=sizes, show=tokens, total=_sum_of(sizes)),
        _numbers(inputs, "size", "by size", "share of the catalog's tokens", values=shares, show=percent, total=_sum_of(shares)),
    ]


def _manifest_columns(inputs: ReportInputs) -> list[Column]:
    """What is shipped."""
    emitted, sizes = inputs.emitted, inputs.sizes
    if not emitted:
        return []
    given = {name: float(source.num_tokens) for name, source in emitted.items()}
    shares = {name: source.share for name, source in emitted.items()}
    epochs = {name: source.epochs for name, source in emitted.items()}
    caps = {name: source.max_epochs for name, source in emitted.items()}
    capped = frozenset(name for name, source in emitted.items() if source.capped)

    def epochs_of(group: SourceGroup) -> float:
        return _sum_of(given)(group) / max(_sum_of(sizes)(group), 1.0)

    return [
        _numbers(inputs, "tokens", "shipped tokens", "in the manifest", values=given, show=tokens, total=_sum_of(given)),
        _numbers(
            inputs, "share", "shipped share", "of the manifest's tokens", values=shares, show=percent, total=_sum_of(shares)
        ),
        _numbers(
            inputs,
            "epochs",
            "epochs",
            "how often a source is read",
            values=epochs,
            show=lambda value: f"{value:.2f}",
            total=epochs_of if sizes else None,
            marked=capped,
        ),
        _numbers(inputs, "cap", "cap", "most epochs allowed", values=caps, show=lambda value: f"{value:g}"),
    ]


def _csv(inputs: ReportInputs) -> str:
    """Every number of every source with all its digits."""
    mixture, sizes, emitted = inputs.mixture, inputs.sizes, inputs.emitted
    further = _further_values(inputs)
    group_of = {name: group.name for group in inputs.groups for name in group.sources}
    heads = ["source"]
    heads += ["group"] if group_of else []
    heads += ["weight", "interval_low", "interval_high"] if mixture is not None else []
    heads += list(further)
    heads += ["unique_tokens"] if sizes else []
    heads += ["manifest_tokens", "manifest_share", "epochs", "max_epochs", "capped"] if emitted else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for name in inputs.sources:
        cells: list[object] = [name]
        cells += [group_of[name]] if group_of else []
        if mixture is not None:
            cells += [mixture.weights[name], *mixture.interval.get(name, ("", ""))]
        cells += [values.get(name, "") for values in further.values()]
        cells += [sizes[name]] if sizes else []
        if emitted:
            source = emitted[name]
            cells += [source.num_tokens, source.share, source.epochs, source.max_epochs, str(source.capped).lower()]
        writer.writerow(cells)
    return text.getvalue()


def _further_values(inputs: ReportInputs) -> dict[str, Mapping[str, object]]:
    """Columns of the CSV that only some searches have."""
    certainty = inputs.certainty
    columns: dict[str, Mapping[str, object]] = {
        "seed_interval_low": {name: low for name, (low, _) in certainty.seed_interval.items()},
        "seed_interval_high": {name: high for name, (_, high) in certainty.seed_interval.items()},
        "signal_to_noise": certainty.signal_to_noise,
        "interchangeable_set": {name: number for number, names in enumerate(certainty.interchangeable, 1) for name in names},
        "held_at": inputs.binding,
    }
    return {head: values for head, values in columns.items() if values}
