"""What a search came to on each of its targets, beside the reference run where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.target import TargetSection
from fastmix_data.results.mixture import Limit, Mixture, TargetRecord, WorstTarget
from train.proxy.engine import ProxyEngine
from train.target.target import Target

LossesByTarget = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ReferenceComparison:
    """Losses of search and reference after as many steps, on the same sequences of the search half, both of shape (G,)."""

    loss_G: Float64s
    reference_G: Float64s


def losses_by_target(target: Target, engine: ProxyEngine, when: str, *, num_sequences: int) -> LossesByTarget:
    """Loss of each target on a fixed sample of both halves, as {target: {search_WHEN: nats, unseen_WHEN: nats}}; on all ranks together."""
    search_G = target.evaluate_each(engine, half="search", num_sequences=num_sequences).tolist()
    unseen_G = target.evaluate_each(engine, half="unseen", num_sequences=num_sequences).tolist()
    return {
        name: {f"search_{when}": search, f"unseen_{when}": unseen}
        for name, search, unseen in zip(target.names, search_G, unseen_G, strict=True)
    }


def compare_with_reference(
    target: Target, engine: ProxyEngine, losses: LossesByTarget, *, step: int, num_steps: int
) -> ReferenceComparison | None:
    """Hold the end of a search against the reference, if there is one; on all ranks together.

    A search that stopped early is compared after as many steps: the reference is interpolated, on the sample of its measurements.
    """
    reference = target.reference
    if reference is None:
        return None
    if step == num_steps:
        return ReferenceComparison(np.array([losses[name]["search_end"] for name in target.names]), np.array(reference.end_G))
    loss_G = target.evaluate_each(engine, half="search", num_sequences=reference.num_sequences)
    return ReferenceComparison(loss_G, reference.at(step))


def weighted_losses(losses: LossesByTarget, weights: dict[str, float]) -> dict[str, float]:
    """Mean over targets by the recipe's weights, of each kind of loss that all of them have.

    >>> weighted_losses({"a": {"search_end": 1.0}, "b": {"search_end": 3.0}}, {"a": 0.75, "b": 0.25})
    {'search_end': 1.5}
    """
    kinds = next(iter(losses.values()))
    weights_G = np.array(list(weights.values()))
    return {kind: float(weights_G @ [losses[name][kind] for name in weights]) for kind in kinds}


def target_record(
    section: TargetSection, losses: LossesByTarget, *, comparison: ReferenceComparison | None, weights_UG: Float64s
) -> TargetRecord:
    """What the mixture tells of targets.

    Args:
        losses: by target, at start and end.
        comparison: with the reference run, if there was one.
        weights_UG: of the targets, over the averaged part of the search, shape (U, G).
    """
    names = list(section.weights())
    record = TargetRecord(
        loss=weighted_losses(losses, section.weights()),
        losses=losses,
        weights=dict(zip(names, weights_UG.mean(axis=0).tolist(), strict=True)),
    )
    if comparison is None:
        return record
    reference = dict(zip(names, comparison.reference_G.tolist(), strict=True))
    regret_G = comparison.loss_G - comparison.reference_G
    worst = int(regret_G.argmax())
    return record.model_copy(
        update={
            "losses": {name: {**losses[name], "reference_end": reference[name]} for name in names},
            "limits": _limits(names, comparison, tolerance=section.limit_tolerance) if section.not_worse_than is not None else {},
            "worst": WorstTarget(target=names[worst], regret=float(regret_G[worst])) if section.worst_case else None,
        }
    )


def _limits(names: Sequence[str], comparison: ReferenceComparison, *, tolerance: float) -> dict[str, Limit]:
    pairs = zip(names, comparison.loss_G.tolist(), comparison.reference_G.tolist(), strict=True)
    return {name: Limit(reference=reference, loss=loss, kept=loss <= reference + tolerance) for name, loss, reference in pairs}


def broken_limits(mixture: Mixture) -> tuple[str, ...]:
    """A line that names the targets which ended beyond their limit and says what to do; none if all kept it."""
    broken = [
        f"{name} ({limit.loss:.3f} nats, {limit.loss - limit.reference:.3f} above the reference run)"
        for name, limit in mixture.target.limits.items()
        if not limit.kept
    ]
    if not broken:
        return ()
    return (
        f"warning: target.not_worse_than is not kept on {', '.join(broken)}; search longer (training.token_budget), add sources that help "
        "there, or allow more in target.limit_tolerance",
    )
