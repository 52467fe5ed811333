"""The table of sources: every number of every source, with the sums of each group."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastmix_data.results.mixture import Intervals
from fastmix_data.results.trajectory import TrajectoryTable
from pipelines.report.format import percent, times, tokens
from pipelines.report.groups import SourceGroup
from pipelines.report.inputs import ReportInputs
from pipelines.report.plots.frame import colour
from pipelines.report.plots.lines import sparkline


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
    parts = [f"{len(group.sources)} source{'s' if len(group.sources) > 1 else ''}"]
    parts += [f"at least {percent(group.low)}"] if group.low > 0 else []
    parts += [f"at most {percent(group.high)}"] if group.high < 1 else []
    return ", ".join(parts)


def _number_column(
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
    totals = {group.name: total(group) for group in inputs.groups} if total is not None else {}
    return Column(key, text, hint, cells, {name: Cell(show(value), value) for name, value in totals.items()})


def _interval_column(inputs: ReportInputs, key: str, text: str, hint: str, *, intervals: Intervals) -> Column:
    """A column of intervals, sorted by their width: by their ends they stand much as the weights do."""
    cells = {
        name: Cell(f"{percent(intervals[name][0])} – {percent(intervals[name][1])}", intervals[name][1] - intervals[name][0])
        if name in intervals
        else Cell()
        for name in inputs.sources
    }
    return Column(key, text, f"{hint}; sorted by its width", cells)


def _sum_of(values: Mapping[str, float]) -> Callable[[SourceGroup], float]:
    return lambda group: group.total(values)


def _search_columns(inputs: ReportInputs) -> list[Column]:
    """What the search found."""
    columns = [_course_column(inputs, inputs.trajectory)] if inputs.trajectory is not None else []
    if inputs.mixture is None:
        return columns
    weights, interval, num_sources = inputs.mixture.weights, inputs.certainty.interval, len(inputs.sources)
    ratios = {name: weight * num_sources for name, weight in weights.items()}

    def ratio_of(group: SourceGroup) -> float:
        return group.total(ratios) / len(group.sources)

    hint = "share of training tokens"
    columns.append(_number_column(inputs, "weight", "weight", hint, values=weights, show=percent, total=_sum_of(weights)))
    for unit, shares in inputs.mixture.shares.items():
        name = unit.replace("_", " ")
        hint = f"what the weight comes to in {name}"
        columns.append(_number_column(inputs, unit, f"of {name}", hint, values=shares, show=percent, total=_sum_of(shares)))
    if interval:
        columns.append(_interval_column(inputs, "interval", "90% interval", "of the weight", intervals=interval))
    columns += _certainty_columns(inputs)
    hint = "weight over that of an equal share"
    columns.append(_number_column(inputs, "uniform", "÷ uniform", hint, values=ratios, show=times, total=ratio_of))
    return columns


def _certainty_columns(inputs: ReportInputs) -> list[Column]:
    """How far to trust a weight, and what holds it where it is."""
    certainty, columns = inputs.certainty, []
    if certainty.seed_interval:
        hint = "90% interval for the weight of one more seed"
        columns.append(_interval_column(inputs, "seeds", "over seeds", hint, intervals=certainty.seed_interval))
    if certainty.signal_to_noise:
        hint = "of the source's score against the mixture's; below 2 in size they cannot be told apart"
        ratios = certainty.signal_to_noise
        columns.append(
            _number_column(inputs, "signal", "signal to noise", hint, values=ratios, show=lambda ratio: f"{ratio:+.1f}")
        )
    if certainty.interchangeable:
        set_of, hint = _set_numbers(inputs), "sources of a set cannot be told apart by their scores"
        cells = {name: Cell(f"set {set_of[name]}", set_of[name]) if name in set_of else Cell() for name in inputs.sources}
        # A soft hyphen lets the browser break this heading, which alone would widen a column of short cells.
        columns.append(Column("alike", "inter\u00adchangeable", hint, cells))
    return [*columns, _held_column(inputs)] if inputs.binding else columns


def _held_column(inputs: ReportInputs) -> Column:
    binding = inputs.binding
    kinds = sorted(set(binding.values()))  # a number for each to sort by, so that what is held alike stands together

    def held(name: str) -> Cell:
        return Cell(binding[name], kinds.index(binding[name]), marked=True) if name in binding else Cell()

    # `binding` names sources and groups: "code" may be a source, and no group that was made from names beginning with it.
    sums = {group.name: held(group.name) for group in inputs.groups if group.name in inputs.constrained_groups}
    cells = {name: held(name) for name in inputs.sources}
    return Column("held", "held at", "the bound of the recipe that a weight lies at", cells, sums)


def _course_column(inputs: ReportInputs, trajectory: TrajectoryTable) -> Column:
    """The weights over the search, in small."""
    column_of = {name: column for column, name in enumerate(trajectory.sources)}

    def course(names: Sequence[str], css: str) -> Cell:
        weights_U = trajectory.weights_UK[:, [column_of[name] for name in names]].sum(axis=1)
        return Cell(picture=sparkline(weights_U, css=css))

    cells = {name: course([name], colour(rank)) for rank, name in enumerate(inputs.sources)}
    sums = {group.name: course(group.sources, "cx") for group in inputs.groups}
    return Column("course", "over the search", "weight, scaled to its own largest value", cells, sums, sortable=False)


def _size_columns(inputs: ReportInputs) -> list[Column]:
    """What there is to train on."""
    sizes, shares = inputs.sizes, inputs.size_shares
    if not sizes:
        return []
    hint = "share of the catalog's tokens"
    where = "in the catalog; estimated where a sample is there" if inputs.estimated else "in the catalog"
    return [
        _number_column(inputs, "unique", "unique tokens", where, values=sizes, show=tokens, total=_sum_of(sizes)),
        _number_column(inputs, "size", "by size", hint, values=shares, show=percent, total=_sum_of(shares)),
        *(
            _number_column(
                inputs,
                f"unique_{unit}",
                unit.replace("_", " "),
                where,
                values=counts,
                show=tokens,
                total=_sum_of(counts),
            )
            for unit, counts in inputs.unit_counts.items()
        ),
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

    def epochs_of(group: SourceGroup) -> float:
        return group.total(given) / max(group.total(sizes), 1.0)

    hint = "of the manifest's tokens"
    head, where = (
        ("shipped", "in the manifest") if inputs.manifest is not None else ("planned", "estimated, for there is no manifest")
    )
    return [
        _number_column(inputs, "tokens", f"{head} tokens", where, values=given, show=tokens, total=_sum_of(given)),
        _number_column(inputs, "share", f"{head} share", hint, values=shares, show=percent, total=_sum_of(shares)),
        _number_column(
            inputs,
            "epochs",
            "epochs",
            "how often a source is read",
            values=epochs,
            show=lambda value: f"{value:.2f}",
            total=epochs_of if sizes else None,
            marked=frozenset(name for name, source in emitted.items() if source.capped),
        ),
        _number_column(inputs, "cap", "cap", "most epochs allowed", values=caps, show=lambda value: f"{value:g}"),
    ]


def _set_numbers(inputs: ReportInputs) -> dict[str, int]:
    """Number of the interchangeable sources that a source is one of."""
    return {name: number for number, names in enumerate(inputs.certainty.interchangeable, 1) for name in names}


def _csv(inputs: ReportInputs) -> str:
    """Every number of every source with all its digits; columns without any are left out."""
    certainty, emitted = inputs.certainty, inputs.emitted
    weights = inputs.mixture.weights if inputs.mixture is not None else {}
    columns: dict[str, Mapping[str, object]] = {
        "group": {name: group.name for group in inputs.groups for name in group.sources},
        "weight": weights,
        "interval_low": {name: certainty.interval.get(name, ("", ""))[0] for name in weights},
        "interval_high": {name: certainty.interval.get(name, ("", ""))[1] for name in weights},
        **{f"weight_in_{unit}": shares for unit, shares in (inputs.mixture.shares if inputs.mixture is not None else {}).items()},
        "seed_interval_low": {name: low for name, (low, _) in certainty.seed_interval.items()},
        "seed_interval_high": {name: high for name, (_, high) in certainty.seed_interval.items()},
        "signal_to_noise": certainty.signal_to_noise,
        "interchangeable_set": _set_numbers(inputs),
        "held_at": inputs.binding,
        "unique_tokens": inputs.sizes,
        **{f"unique_{unit}": counts for unit, counts in inputs.unit_counts.items()},
        "manifest_tokens": {name: source.num_tokens for name, source in emitted.items()},
        "manifest_share": {name: source.share for name, source in emitted.items()},
        "epochs": {name: source.epochs for name, source in emitted.items()},
        "max_epochs": {name: source.max_epochs for name, source in emitted.items()},
        "capped": {name: str(source.capped).lower() for name, source in emitted.items()},
    }
    known = {head: values for head, values in columns.items() if values}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", *known])
    writer.writerows([name, *(values.get(name, "") for values in known.values())] for name in inputs.sources)
    return text.getvalue()
