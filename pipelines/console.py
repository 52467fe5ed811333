"""What commands print: text for people on stderr and stdout, or one JSON object with --json."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from fastmix_data.errors import Interrupted, ToldElsewhere
from fastmix_data.messages import joined
from fastmix_data.text_table import aligned

if TYPE_CHECKING:  # for --help's sake nothing heavy is imported
    from pathlib import Path

    from fastmix_data.manifest.estimated import EmitPlan
    from fastmix_data.manifest.manifest import Manifest
    from fastmix_data.results.mixture import Mixture, TrialsRecord

_BAR_WIDTH = 24


class Console:
    """Prints a command's messages and its result.

    Messages go to stderr and the result to stdout, so that `--json` output can be piped.
    """

    def __init__(self, *, as_json: bool, rank: int = 0) -> None:
        """Choose JSON or text. What all ranks of a launched run have to say, the first one says."""
        self.as_json, self._rank = as_json, rank

    @property
    def is_quiet(self) -> bool:
        """Whether progress is to be shown to nobody."""
        return self.as_json or self._rank > 0

    def say(self, *messages: str) -> None:
        """Show lines about the work."""
        for message in messages:
            if not self.is_quiet:
                print(message, file=sys.stderr, flush=True)

    def fail(self, error: BaseException) -> None:
        """Show why a command ends: a line on stderr, and with --json an object too."""
        kind = "stopped" if isinstance(error, Interrupted) else "error"
        text = " ".join(str(error).split()) or type(error).__name__
        if self._rank == 0:
            print(f"{kind}: {text}", file=sys.stderr)
        elif not isinstance(error, ToldElsewhere):  # a missing shard may be this machine's alone
            print(f"{kind} on rank {self._rank}: {text}", file=sys.stderr)
        if self.as_json:
            self.result({kind: text})

    def result(self, content: Mapping[str, Any], text: str = "") -> None:
        """Show the outcome: `content` as JSON, or `text`."""
        if self._rank > 0:
            return
        if self.as_json:
            import orjson

            options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
            print(orjson.dumps(content, option=options, default=str).decode())
        elif text:
            print(text)


def mixture_table(mixture: Mixture, epochs: Mapping[str, float] | None = None) -> str:
    """Weights from large to small with what is known of their uncertainty, a bar and, after emit, how often each source is read.

    Columns of what the mixture does not say are left out.
    """
    weights, certainty = mixture.weights, mixture.certainty
    largest = max(weights.values())
    columns: list[tuple[str, Mapping[str, str]]] = [
        ("source", {name: name for name in weights}),
        ("   share", _percents(weights)),
        *((f"of {unit.replace('_', ' ')}", _percents(shares)) for unit, shares in mixture.shares.items()),
        ("90% interval", _interval_texts(certainty.interval)),
        ("another seed", _interval_texts(certainty.seed_interval)),
        ("signal/noise", {name: f"{ratio:12.1f}" for name, ratio in certainty.signal_to_noise.items()}),
        ("", {name: "█" * round(_BAR_WIDTH * weight / largest) for name, weight in weights.items()}),
        ("", {name: f"{times:.2f} epochs" for name, times in (epochs or {}).items()}),
    ]
    shown = [(title, texts) for title, texts in columns if texts]
    names = sorted(weights, key=lambda name: -weights[name])
    rows = [[title for title, _ in shown], *([texts.get(name, "") for _, texts in shown] for name in names)]
    # Numbers have their width already, for an interval is two of them that stand under each other.
    return indent(aligned(rows, flush_left=range(len(shown))), "  ")


def _percents(shares: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{share:7.1%}" for name, share in shares.items()}


def _interval_texts(interval: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    return {name: f"[{100 * low:5.1f} {100 * high:5.1f}]" for name, (low, high) in interval.items()}


def mixture_notes(mixture: Mixture) -> list[str]:
    """What trials said, a line for each group of interchangeable sources, one of the target's documents, and why the search ended."""
    notes = _trial_notes(mixture.trials) if mixture.trials is not None else []
    notes += [
        f"{joined(group)} are interchangeable: their scores cannot be told apart; only the sum of their shares "
        f"({sum(mixture.weights[name] for name in group):.1%}) is meaningful"
        for group in mixture.certainty.interchangeable
    ]
    num_documents = mixture.certainty.num_documents
    if num_documents:
        listed = joined([f"{count:,} of {name}" for name, count in num_documents.items()])
        notes.append(f"documents of the target that the search saw: {listed}; the interval is over other ones too")
    notes += [f"warning: {warning}" for warning in mixture.certainty.warnings]
    return [*notes, f"end of search: {mixture.search.stopped}"] if mixture.search.stopped else notes


def _trial_notes(trials: TrialsRecord) -> list[str]:
    """The winner beside what most people would do, or else beside the start, with no claim below the noise."""
    from fastmix_data.results.mixture import TRIED

    other = next((name for name in ("proportional", "start") if name in trials.ahead), "")
    if not other:
        return []
    mean, low, high = trials.ahead[other]
    pairs = trials.num_pairs(trials.winner, other)
    in_pairs = f"in {pairs} pair{'s' if pairs != 1 else ''} (90% interval {low:+.3f} to {high:+.3f})"
    said = f"{mean:.3f} nats ahead of {TRIED[other]}" if low > 0 else f"it cannot be told from {TRIED[other]}"
    return [f"trials chose {TRIED[trials.winner]}: {said} {in_pairs}; one proxy's loss is known to {trials.noise:.3f}"]


def fit_summary(mixture: Mixture) -> str:
    """What a fit to somebody's swarm came to: the laws on runs that were held out, the mixture, and what it is predicted to reach."""
    record = mixture.fit
    assert record is not None
    rows = [("law", "rank correlation", "error")]
    for name, law in record.laws.items():
        rows.append((f"{name} (chosen)" if name == record.law else name, f"{law.rank_correlation:.3f}", f"{law.error:.4g}"))
    bounds = [f"{name} ({kind})" for name, kind in mixture.binding.items()]
    lines = [
        f"{record.num_runs} runs, {joined(record.targets)}; each law on runs that it was not fitted to:",
        indent(aligned(rows), "  "),
        mixture_table(mixture),
        *([f"at a bound: {joined(bounds)}"] if bounds else []),
        f"predicted {record.predicted:.4g}; the mean of the swarm's mixtures {record.predicted_centre:.4g}; "
        f"best run ({record.best_run}) {record.best_measured:.4g}",
        f"noise floor: mixtures whose predictions differ by less than {record.noise_floor:.2g} are not told apart",
    ]
    return "\n".join(lines)


def run_summary(
    mixture: Mixture, manifest: Manifest | EmitPlan, report: Path, exports: Sequence[tuple[str, Path]]
) -> tuple[dict[str, Any], str]:
    """What a whole run came to, as a JSON-able dictionary and as text.

    Args:
        manifest: or its plan, whose figures are estimates.
        exports: formats, each with the file that its trainer is given.
    """
    from fastmix_data.manifest.estimated import COMPLETE, EmitPlan

    epochs = {source.name: source.epochs for source in manifest.sources}
    loss, cost = mixture.target.loss, mixture.search
    is_plan = isinstance(manifest, EmitPlan)
    times = "estimated from a sample, times each source will be read" if is_plan else "times each source is read"
    shipped = f"{'plan:    ' if is_plan else 'manifest:'} {manifest.num_tokens:,} tokens in {manifest.path}"
    lines = [
        f"\nmixture, learned in {cost.seconds:.0f} s from {cost.num_tokens:,} proxy tokens ({times} at the end):",
        mixture_table(mixture, epochs),
        *mixture_notes(mixture),
        f"the proxy's target loss on the half the search did not see: {loss['unseen_start']:.3f} -> {loss['unseen_end']:.3f} nats",
        *([f"{shipped}; {COMPLETE}", *manifest.doubts] if isinstance(manifest, EmitPlan) else [shipped]),
        f"report:   {report}",
        *(f"export:   give {name} {path}" for name, path in exports),
    ]
    content = {
        "mixture": mixture.model_dump(),
        "manifest": None if is_plan else str(manifest.path),
        "plan": str(manifest.path) if is_plan else None,
        "num_tokens": manifest.num_tokens,
        "epochs": epochs,
        "report": str(report),
        "exports": [{"format": name, "give": str(path)} for name, path in exports],
    }
    return content, "\n".join(lines)
