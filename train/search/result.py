"""What a search leaves in its folder, and whether what lies there belongs to the plan at hand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import sha256_of_file
from fastmix_data.errors import CorruptArtefactError, MismatchError, RecipeError
from fastmix_data.results.mixture import (
    Intervals,
    Mixture,
    Origin,
    SearchRecord,
    StartRecord,
    TrialsRecord,
    load_mixture,
    save_mixture,
)
from fastmix_data.results.searched_recipe import load_searched_recipe
from fastmix_data.results.trajectory import Trajectory
from fastmix_data.shards.held_out_halves import documents_seen
from fastmix_data.workdir import SearchFolder
from train.checkpoints.checkpoint_folder import check_checkpoints
from train.proxy.engine import ProxyEngine
from train.search.certainty import averaged_weights, certainty_of
from train.search.other_documents import combined, document_interval
from train.search.plan import SearchPlan
from train.search.proposals import SCORES
from train.search.proxy_run import ProxyRun
from train.search.start import Start
from train.search.stopping import StandStill, why_it_ended
from train.search.trials import Trials
from train.target.outcome import LossesByTarget, ReferenceComparison, target_record
from train.trials.verdict import Verdict


def finished_mixture(plan: SearchPlan, *, replace: bool, num_seeds: int | None = None) -> Mixture | None:
    """A complete mixture of this plan, if there is one.

    Args:
        num_seeds: searches that it must be the mean of; None for any number. One of fewer searches is there to be added to.

    Raises:
        MismatchError: a mixture of another recipe, other data or more searches lies here, and `replace` is not given.
    """
    path = plan.folder.mixture
    if not path.exists():
        return None
    try:
        mixture = load_mixture(path)
    except (RecipeError, CorruptArtefactError):
        if replace:  # of an earlier version, or damaged: it is made anew
            return None
        raise
    is_same = {
        # On a sample is meant to be for the whole that has taken its place.
        "data": plan.catalog.is_or_completes(mixture.made_from.catalog),
        "recipe": mixture.made_from.recipe == plan.recipe_hash,
    }
    differing = [what for what, same in is_same.items() if not same]
    if not differing:
        return mixture if _has_searches(plan, mixture, num_seeds, replace=replace) else None
    if not replace:
        changed = _changed_keys(plan)
        what = f"made with another {' and '.join(differing)}{f' ({changed})' if changed else ''}"
        raise MismatchError(path, what, "give another workdir, or start afresh with --replace")
    return None


def _has_searches(plan: SearchPlan, mixture: Mixture, num_seeds: int | None, *, replace: bool) -> bool:
    found = mixture.certainty.num_searches
    if num_seeds is None or num_seeds >= found or replace:
        return num_seeds in (None, found)
    what = f"the mean of {found} searches, and --seeds {num_seeds} asks for fewer"
    raise MismatchError(plan.folder.mixture, what, "leave --seeds out, or make it anew with --replace")


def _changed_keys(plan: SearchPlan) -> str:
    """Names of the keys that differ from the recipe saved beside the mixture, as far as it is there."""
    try:
        return ", ".join(plan.sections.changed_keys(load_searched_recipe(plan.folder.recipe)))
    except (FileNotFoundError, CorruptArtefactError):
        return ""


def discard_other_search(folder: SearchFolder, *, identity: dict[str, Any], replace: bool) -> None:
    """Make way for a run: keep the checkpoints if they are its own, and with `replace` remove those of another.

    Raises:
        MismatchError: another search was stopped here.
    """
    try:
        check_checkpoints(folder.checkpoints, identity=identity)
    except MismatchError:
        if not replace:
            raise
        shutil.rmtree(folder.checkpoints)
    folder.mixture.unlink(missing_ok=True)


def by_source(sources: Sequence[str], ends: tuple[Float64s, Float64s]) -> Intervals:
    """Intervals by name, of lower and upper ends of shape (K,)."""
    return dict(zip(sources, zip(*(end_K.tolist() for end_K in ends), strict=True), strict=True))


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run along the scores came to.

    Attributes:
        weights_K: average of the last part of the trajectory, within the constraints to rounding, shape (K,).
        ends: of the 90% interval of that average, both of shape (K,).
        averaged_since: step after which it is averaged.
        losses: by target, at start and end.
        comparison: with the reference run, if there was one.
        num_tokens: trained on, and read to measure targets.
    """

    trajectory: Trajectory
    initial_K: Float64s
    weights_K: Float64s
    ends: tuple[Float64s, Float64s]
    averaged_since: float
    num_steps: int
    num_updates: int
    still: StandStill | None
    num_parameters: int
    world_size: int
    losses: LossesByTarget
    comparison: ReferenceComparison | None
    num_tokens: int
    seconds: float

    @classmethod
    def of(
        cls,
        run: ProxyRun,
        engine: ProxyEngine,
        *,
        losses: LossesByTarget,
        comparison: ReferenceComparison | None,
        num_tokens: int,
        seconds: float,
    ) -> RunRecord:
        """Read it off a finished run, whose engine may be closed afterwards."""
        mean_K, low_K, high_K = averaged_weights(run.trajectory.weights_since(run.averaged_since))
        return cls(
            trajectory=run.trajectory,
            initial_K=run.initial_K,
            weights_K=run.within_bounds(mean_K),  # an average of feasible mixtures is one; this takes its rounding away
            ends=(low_K, high_K),
            averaged_since=run.averaged_since,
            num_steps=run.step,
            num_updates=run.mixture.num_updates,
            still=run.still,
            num_parameters=engine.num_parameters,
            world_size=engine.world_size,
            losses=losses,
            comparison=comparison,
            num_tokens=num_tokens,
            seconds=seconds,
        )


def write_result(
    plan: SearchPlan, *, start: Start, found: RunRecord, trials: Trials | None, num_tokens: int, seconds: float
) -> Mixture:
    """Write trajectory and, last, the mixture, which is returned; checkpoints have served then.

    Args:
        start: where the run started.
        found: what it came to.
        trials: of the mixtures proposed; None where there were none, and the run's mixture is the answer.
        num_tokens, seconds: of all but the trials.
    """
    folder, search, sources = plan.folder, plan.search, plan.catalog.sources
    found.trajectory.save(folder.trajectory, sources=sources, targets=list(plan.target.weights()))
    verdict = trials.verdict(horizon_steps=plan.proxy.training.num_steps) if trials is not None else None
    if trials is None or verdict is None:
        answer_K, ends = found.weights_K, found.ends
    else:
        answer_K = np.array(trials.candidates[verdict.winner])
        ends = _ends(trials, verdict)
        if verdict.winner == SCORES:  # which another trajectory would have found elsewhere
            ends = np.minimum(ends[0], found.ends[0]), np.maximum(ends[1], found.ends[1])
    ends = np.minimum(ends[0], answer_K), np.maximum(ends[1], answer_K)
    num_documents = {name: documents_seen(plan.catalog, name) for name in plan.target.weights()}
    other_documents = document_interval(
        answer_K,
        width_K=start.document_width_K,
        num_documents=list(num_documents.values()),
        importance=list(plan.target.weights().values()),
        bounds=plan.constraints,
    )
    certainty = certainty_of(
        found.trajectory,
        sources=sources,
        weights_K=answer_K,
        averaged_since=found.averaged_since,
        scored_batch=plan.proxy.training.global_batch,
        target_memory=search.target_memory,
    )
    mixture = Mixture(
        weights=dict(zip(sources, answer_K.tolist(), strict=True)),
        shares=plan.catalog.counted(answer_K),
        method=f"{search.method} ({search.hypergradient} parameters)",
        binding=plan.constraints.binding(answer_K),
        certainty=certainty.model_copy(
            update={
                "interval": by_source(sources, combined(answer_K, ends, other_documents)),
                "document_interval": by_source(sources, other_documents),
                "num_documents": num_documents,
            }
        ),
        start=StartRecord(weights=dict(zip(sources, found.initial_K.tolist(), strict=True))),
        trials=_trials_record(plan, trials, verdict) if trials is not None and verdict is not None else None,
        search=SearchRecord(
            seed=plan.proxy.training.seed,
            num_tokens=num_tokens + (trials.num_tokens if trials is not None else 0),
            seconds=round(seconds + (trials.seconds if trials is not None else 0.0), 3),
            num_steps=found.num_steps,
            num_updates=found.num_updates,
            stopped=why_it_ended(found.still, training=plan.main.training, search=search),
            num_parameters=found.num_parameters,
            world_size=found.world_size,
        ),
        target=target_record(
            plan.target,
            found.losses,
            comparison=found.comparison,
            weights_UG=found.trajectory.target_weights_since(found.averaged_since),
        ),
        made_from=Origin(catalog=plan.catalog.fingerprint, recipe=plan.recipe_hash, trajectory=sha256_of_file(folder.trajectory)),
    )
    save_mixture(folder.mixture, mixture)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return mixture


def _ends(trials: Trials, verdict: Verdict) -> tuple[Float64s, Float64s]:
    """The 90% interval of each weight, by how likely each mixture is the best, both of shape (K,)."""
    mixtures_CK = np.array(list(trials.candidates.values()))
    likely_CK = np.broadcast_to(verdict.probability_C[:, None], mixtures_CK.shape)
    order_CK = np.argsort(mixtures_CK, axis=0)
    sorted_CK, below_CK = (np.take_along_axis(values_CK, order_CK, axis=0) for values_CK in (mixtures_CK, likely_CK))
    below_CK = np.cumsum(below_CK, axis=0)
    columns = np.arange(mixtures_CK.shape[1])
    low_K, high_K = (sorted_CK[(below_CK < level - 1e-9).sum(axis=0), columns] for level in (0.05, 0.95))
    return low_K, high_K


def _trials_record(plan: SearchPlan, trials: Trials, verdict: Verdict) -> TrialsRecord:
    sources, names = plan.catalog.sources, list(trials.candidates)
    likely = dict(zip(names, verdict.probability_C.tolist(), strict=True))
    return TrialsRecord(
        mixtures={name: dict(zip(sources, weights, strict=True)) for name, weights in trials.candidates.items()},
        losses={name: {str(t.round): t.loss for t in trials.done if t.candidate == name} for name in names},
        tokens={str(t.round): t.num_steps * plan.proxy.training.tokens_per_step for t in trials.done},
        probability=likely,
        winner=verdict.winner,
        ahead={
            name: tuple(-part for part in (mean, high, low))
            for name in names
            if name != verdict.winner
            for mean, low, high in [verdict.difference(verdict.winner, name)]
        },
        noise=verdict.noise,
        exponent=verdict.exponent,
        horizon_tokens=plan.proxy.training.num_tokens,
    )
