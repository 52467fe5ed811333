"""What a search leaves in its folder, and whether what lies there belongs to the plan at hand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import sha256_of_file
from fastmix_data.errors import CorruptArtefactError, MismatchError, RecipeError
from fastmix_data.results.mixture import Intervals, Mixture, Origin, SearchRecord, StartRecord, load_mixture, save_mixture
from fastmix_data.results.searched_recipe import load_searched_recipe
from fastmix_data.shards.held_out_halves import documents_seen
from fastmix_data.workdir import SearchFolder
from train.proxy.checkpoint import check_checkpoint
from train.proxy.engine import ProxyEngine
from train.search.certainty import averaged_weights, certainty_of
from train.search.other_documents import combined, document_interval
from train.search.plan import SearchPlan
from train.search.proxy_run import ProxyRun
from train.search.start import Start
from train.search.stopping import why_it_ended
from train.target.outcome import LossesByTarget, ReferenceComparison, target_record


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
    now = {"data": (mixture.made_from.catalog, plan.catalog.fingerprint), "recipe": (mixture.made_from.recipe, plan.recipe_hash)}
    differing = [what for what, (then, here) in now.items() if then != here]
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
        check_checkpoint(folder.checkpoints, identity=identity)
    except MismatchError:
        if not replace:
            raise
        shutil.rmtree(folder.checkpoints)
    folder.mixture.unlink(missing_ok=True)


def by_source(sources: Sequence[str], ends: tuple[Float64s, Float64s]) -> Intervals:
    """Intervals by name, of lower and upper ends of shape (K,)."""
    return dict(zip(sources, zip(*(end_K.tolist() for end_K in ends), strict=True), strict=True))


def write_result(
    plan: SearchPlan,
    *,
    start: Start,
    run: ProxyRun,
    engine: ProxyEngine,
    losses: LossesByTarget,
    comparison: ReferenceComparison | None,
    num_tokens: int,
    seconds: float,
) -> None:
    """Write trajectory and, last, the mixture; checkpoints have served then.

    Args:
        start: where the run started.
        losses: by target, at start and end.
        comparison: with the reference run, if there was one.
        num_tokens: all that were trained on or read to measure targets, the trials' and the reference run's included.
    """
    folder, search, sources, seed = plan.folder, plan.search, plan.catalog.sources, plan.proxy.training.seed
    run.trajectory.save(folder.trajectory, sources=sources, targets=list(plan.target.weights()))
    mean_K, low_K, high_K = averaged_weights(run.trajectory.weights_since(run.averaged_since), seed=seed)
    mean_K = plan.constraints.project(mean_K)  # an average of feasible mixtures is one; this takes its rounding away
    low_K, high_K = np.minimum(low_K, mean_K), np.maximum(high_K, mean_K)
    num_documents = {name: documents_seen(plan.catalog, name) for name in plan.target.weights()}
    other_documents = document_interval(
        mean_K,
        width_K=start.document_width_K,
        num_documents=list(num_documents.values()),
        importance=list(plan.target.weights().values()),
        bounds=plan.constraints,
    )
    interval = combined(mean_K, (low_K, high_K), other_documents)
    mixture = Mixture(
        weights=dict(zip(sources, mean_K.tolist(), strict=True)),
        shares=plan.catalog.counted(mean_K),
        method=f"fastmix ({search.hypergradient} parameters)",
        binding=plan.constraints.binding(mean_K),
        certainty=certainty_of(
            run.trajectory,
            sources=sources,
            weights_K=mean_K,
            interval=by_source(sources, interval),
            averaged_since=run.averaged_since,
            exploration=search.exploration,
        ).model_copy(update={"document_interval": by_source(sources, other_documents), "num_documents": num_documents}),
        start=StartRecord(weights=dict(zip(sources, run.initial_K.tolist(), strict=True)), trials=start.trial_losses),
        search=SearchRecord(
            seed=seed,
            num_tokens=num_tokens,
            seconds=round(seconds, 3),
            num_steps=run.step,
            num_updates=run.mixture.num_updates,
            stopped=why_it_ended(run.still, training=plan.main.training, search=search),
            num_parameters=engine.num_parameters,
            world_size=engine.world_size,
        ),
        target=target_record(
            plan.target, losses, comparison=comparison, weights_UG=run.trajectory.target_weights_since(run.averaged_since)
        ),
        made_from=Origin(catalog=plan.catalog.fingerprint, recipe=plan.recipe_hash, trajectory=sha256_of_file(folder.trajectory)),
    )
    save_mixture(folder.mixture, mixture)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
