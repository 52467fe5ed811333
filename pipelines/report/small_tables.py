"""Small tables beside the plots: losses, compared methods, targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.format import duration, percent, power_of_ten, tokens
from pipelines.report.inputs import ReportInputs

_TARGET_LOSSES = {
    "unseen_start": "unseen half, start",
    "unseen_end": "unseen half, end",
    "search_end": "search half, end",
    "reference_end": "reference run, end",
}
_SHARES_OF_A_MIXTURE = 3


@dataclass(frozen=True)
class TextTable:
    """A small table beside a plot; the first column has names."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def small_tables(inputs: ReportInputs) -> dict[str, TextTable]:
    """The tables of the page by the section that they belong to."""
    found = {
        "trials": _trials(inputs),
        "compare": _comparison(inputs),
        "loss": _losses(inputs),
        "targets": _targets(inputs),
        "manifest": _phases(inputs),
    }
    return {name: table for name, table in found.items() if table.rows}


def _trials(inputs: ReportInputs) -> TextTable:
    """The mixtures tried, the answer first and then the likeliest."""
    trials, production = inputs.trials, inputs.production_tokens
    if trials is None:
        return TextTable((), [])
    heads = ["mixture", "largest shares", "likely the best", "answer ahead by, nats", "90% interval", "pairs"]
    rows: list[tuple[str, ...]] = []
    for name in sorted(trials.mixtures, key=lambda name: (name != trials.winner, -trials.probability[name])):
        label, beside = f"{name} (the answer)", ["", "", ""]
        if name != trials.winner:
            mean, low, high = trials.ahead[name]
            label, beside = name, [f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{trials.num_pairs(trials.winner, name)}"]
        if production:
            beside.append(f"{mean * trials.factor_at(production):+.3f}" if name != trials.winner else "")
        rows.append((label, _largest(trials.mixtures[name]), f"{100 * trials.probability[name]:.0f}%", *beside))
    return TextTable((*heads, *([f"at {tokens(production)} tokens"] if production else [])), rows)


def _largest(shares: dict[str, float]) -> str:
    names = sorted(shares, key=lambda name: -shares[name])[:_SHARES_OF_A_MIXTURE]
    return ", ".join(f"{100 * shares[name]:.0f}% {name}" for name in names)


def _losses(inputs: ReportInputs) -> TextTable:
    """Target loss at the start and the end of both halves."""
    found = inputs.target.loss
    rows: list[tuple[str, ...]] = []
    for half, label in (("search", "half that drives the search"), ("unseen", "half never seen")):
        start, end = found.get(f"{half}_start"), found.get(f"{half}_end")
        if start is not None and end is not None:
            rows.append((label, f"{start:.4f}", f"{end:.4f}", f"{end - start:+.4f}"))
    return TextTable(("target loss, nats per loss token", "start", "end", "change"), rows)


def _comparison(inputs: ReportInputs) -> TextTable:
    """Compared methods, the best first."""
    heads = (
        "method",
        "target loss",
        "against uniform",
        "90% interval",
        "share of attainable gain",
        "search tokens",
        "FLOPs",
        "search time",
    )
    rows = [
        (
            method.name,
            f"{method.mean_loss:.4f}",
            "" if method.difference is None else f"{method.difference:+.4f}",
            "" if method.interval is None else f"{method.interval[0]:+.4f} to {method.interval[1]:+.4f}",
            "" if method.gain_share is None else f"{100 * method.gain_share:.0f}%",
            tokens(method.search_tokens),
            power_of_ten(method.search_flops),
            duration(method.search_seconds),
        )
        for method in inputs.compared
    ]
    return TextTable(heads, rows)


def _targets(inputs: ReportInputs) -> TextTable:
    """A row per target with the columns that have something in them; none for a lone target without a reference run."""
    target, losses = inputs.target, inputs.target.losses
    if len(losses) < 2 and not target.limits and target.worst is None:
        return TextTable((), [])
    columns: dict[str, dict[str, str]] = {"weight": {name: percent(weight) for name, weight in target.weights.items()}}
    for key, head in _TARGET_LOSSES.items():
        columns[head] = {name: f"{found[key]:.4f}" for name, found in losses.items() if key in found}
    columns["against reference"] = {
        name: f"{found['search_end'] - found['reference_end']:+.4f}"
        for name, found in losses.items()
        if {"search_end", "reference_end"} <= found.keys()
    }
    columns["limit"] = {name: "kept" if limit.kept else "not kept" for name, limit in target.limits.items()}
    filled = {head: cells for head, cells in columns.items() if cells}
    rows = [(name, *(cells.get(name, "") for cells in filled.values())) for name in losses]
    return TextTable(("target", *filled), rows)


def _phases(inputs: ReportInputs) -> TextTable:
    """The phases of the manifest in their order; none where one mixture is for all of it."""
    phases = inputs.manifest.phases if inputs.manifest is not None else ()
    if len(phases) < 2:
        return TextTable((), [])
    rows = [(f"phase {number}", tokens(phase.num_tokens), _largest(dict(phase.shares))) for number, phase in enumerate(phases)]
    return TextTable(("in this order", "tokens", "largest shares"), rows)
