"""Remarks under the plots and warnings at the top of the page."""

from __future__ import annotations

from collections.abc import Sequence

from fastmix_data.messages import and_more, joined
from pipelines.report.format import times, tokens
from pipelines.report.inputs import ReportInputs

_MOST_NAMES = 5
_MOST_SETS = 6


def notes(inputs: ReportInputs) -> dict[str, list[str]]:
    """Remarks by the section that they belong to."""
    first = "Of the first of these searches, as are the losses and scores over time."
    return {
        "mixture": [first] if inputs.certainty.num_searches > 1 else [],
        "weights": [*_documents(inputs), *_several_searches(inputs), *_binding(inputs), *_interchangeable(inputs)],
        "trials": _trials(inputs),
        "targets": _worst(inputs),
    }


def warnings(inputs: ReportInputs) -> list[str]:
    """What a reader must know before trusting the rest."""
    few = [f"{text[0].upper()}{text[1:]}." for text in inputs.certainty.warnings]
    return [*inputs.disagreements, *inputs.unreadable, *_of_sample(inputs), *few, *_broken_limits(inputs)]


def _of_sample(inputs: ReportInputs) -> list[str]:
    names = inputs.estimated
    if not names:
        return []
    doubts = [f"{text[0].upper()}{text[1:]}." for text in (inputs.plan.doubts if inputs.plan is not None else ())]
    return [
        f"Estimated from a sample: tokens and epochs of {_list_names(names)}, and all that follows from them. "
        "`fastmix preprocess --all` makes them exact.",
        *doubts,
    ]


def _several_searches(inputs: ReportInputs) -> list[str]:
    count = inputs.certainty.num_searches
    if count == 1:
        return []
    return [
        f"The weights are the mean of {count} searches. Circles: what each seed found; thin lines: where one more would lie (90%)."
    ]


def _trials(inputs: ReportInputs) -> list[str]:
    trials, production = inputs.trials, inputs.production_tokens
    if trials is None:
        return []
    found = [
        f"One trial is known to {trials.noise:.3f} nats: two of them on one mixture differ by up to {trials.noise_floor:.3f} (90%).",
        f"Differences are those after {tokens(trials.horizon_tokens)} training tokens, taken to shrink as tokens to the power "
        f"-{trials.exponent:.1f}.",
    ]
    if production:
        factor = times(trials.factor_at(production))
        found.append(
            f"Carried on to the {tokens(production)} tokens of production they are {factor} that, for a model like the proxy."
        )
    return found


def _documents(inputs: ReportInputs) -> list[str]:
    found = [f"{count:,} of {name}" for name, count in inputs.certainty.num_documents.items()]
    if not found:
        return []
    which = joined(found) if len(found) <= _MOST_NAMES else and_more(found, shown=_MOST_NAMES, more="other targets")
    return [f"Documents of the target that the search saw: {which}. The 90% interval is over other ones too."]


def _binding(inputs: ReportInputs) -> list[str]:
    """Which constraints hold the answer, each with whom it holds."""
    held: dict[str, list[str]] = {}
    for name, what in inputs.binding.items():
        held.setdefault(what, []).append(name)
    parts = [f"{what}: {_list_names(names)}" for what, names in held.items()]
    return [f"Held at the recipe's bounds: {'; '.join(parts)}."] if parts else []


def _interchangeable(inputs: ReportInputs) -> list[str]:
    found = inputs.certainty.interchangeable
    if not found:
        return []
    more = f"; {len(found) - _MOST_SETS} more such groups are marked in the table" if len(found) > _MOST_SETS else ""
    sets = "; ".join(_list_names(names) for names in found[:_MOST_SETS])
    return [f"Interchangeable, their scores cannot be told apart, so only their sum is settled: {sets}{more}."]


def _worst(inputs: ReportInputs) -> list[str]:
    worst = inputs.target.worst
    if worst is None:
        return []
    return [f"The largest regret is that of {worst.target}: {worst.regret:+.4f} nats against the reference run."]


def _broken_limits(inputs: ReportInputs) -> list[str]:
    limits = inputs.target.limits
    broken = [f"{name} by {limit.loss - limit.reference:.3f} nats" for name, limit in limits.items() if not limit.kept]
    return [f"Not kept: target.not_worse_than, on {joined(broken)}."] if broken else []


def _list_names(names: Sequence[str]) -> str:
    return joined(names) if len(names) <= _MOST_NAMES else and_more(names, shown=_MOST_NAMES, more="others")
