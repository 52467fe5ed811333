"""`fastmix compare`: every method finds a mixture at its own cost, and fresh proxies say what each mixture is worth.

Searches see the search half of the target only. Each mixture is confirmed by proxies of the search's budget that no search trained, with
the same seeds for every method, on the unseen half; so methods are compared seed by seed, in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.atomic_files import exclusive_lock
from fastmix_data.errors import MismatchError
from fastmix_data.machine import Workers
from fastmix_data.results.comparison import ComparedMethod, Comparison, load_comparison, save_comparison
from fastmix_data.workdir import CompareFolder, Workdir
from pipelines.compare.methods import Method, parse_methods
from pipelines.compare.mixmin import check_mixmin, fit_mixmin, mixmin_jobs
from pipelines.compare.pool import Job, run_jobs
from pipelines.compare.proxies import ProxyJob, unfinished
from pipelines.compare.searches import (
    FoundMixture,
    ReweightingJob,
    centre_of,
    check_paper,
    fit_swarm,
    found_by_search,
    found_by_trials,
    proxy_job,
    search_mixture,
    stated_mixture,
    swarm_jobs,
)
from pipelines.compare.side_by_side import run_side_by_side
from pipelines.compare.table import draw_comparison
from train.search.plan import SearchPlan, check_planned_proxy, check_search

# Confirming proxies of search seed s start at (s + 1) times this: far from the seeds of searches, and other ones for every search, so that
# several searches are not all confirmed by the same few proxies.
_SEEDS_OF_A_SEARCH = 100


@dataclass(frozen=True)
class CompareResult:
    """What a call of `compare` came to.

    Attributes:
        did_work: False if it was there already.
        notes: what a reader must know of how mixtures were found.
    """

    comparison: Comparison
    path: Path
    did_work: bool
    message: str
    notes: tuple[str, ...] = ()


def compare(
    plan: SearchPlan,
    *,
    methods: str,
    num_seeds: int,
    workers: Workers | None = None,
    replace: bool = False,
    directory: Path | None = None,
    side_by_side: bool | None = None,
) -> CompareResult:
    """Compare methods on a preprocessed workdir, or go on with a comparison that was stopped.

    Proxies and searches are kept in the workdir by what decides them, whatever the target and the list of methods.

    Args:
        methods: names separated by commas, uniform among them; see `compare.methods`.
        num_seeds: confirming proxies of each mixture.
        replace: discard a result that was made from another recipe or other data.
        directory: folder of the result and its picture; that of comparisons in the workdir when not given.
        side_by_side: whether proxies are trained in batches; where there is a GPU when not given.

    Raises:
        RecipeError: a method or the recipe cannot work; found before anything is trained.
        MismatchError: the folder holds a comparison of another recipe or other data.
    """
    wanted, workers = parse_methods(methods), workers or Workers()
    check_search(plan, num_ranks=1)
    for kind, check in (("mixmin", check_mixmin), ("paper", check_paper)):
        if any(method.kind == kind for method in wanted):
            check(plan)
    kept = Workdir(plan.catalog.root).compare
    result = kept if directory is None else CompareFolder(directory)
    seeds = confirming_seeds(plan.proxy.training.seed, num_seeds=num_seeds)
    done = _finished(result.comparison, plan, wanted, seeds=seeds, replace=replace)
    if done is not None:
        message = f"{result.comparison} is complete and matches the recipe; nothing to do"
        return CompareResult(done, result.comparison, False, message)
    scored = any(method.kind == "doge" for method in wanted)  # fastmix's own search checks for itself
    remark = check_planned_proxy(plan.proxy, scope="all" if scored else None, num_ranks=1)
    with exclusive_lock(kept.lock, command="compare"):
        found = _find_mixtures(wanted, plan, workers, side_by_side=side_by_side)
        jobs = _confirmations(found, plan, seeds=seeds)
        confirming = [job for row in jobs.values() for job in row]
        run_side_by_side(confirming, workers, description="confirm", wanted=side_by_side)
        run_jobs(unfinished(confirming), workers, description="confirm")
        comparison = Comparison(
            recipe_hash=plan.recipe_hash,
            catalog_hash=plan.catalog.fingerprint,
            seeds=seeds,
            token_budget=plan.proxy.training.token_budget,
            target=plan.target.weights(),
            methods={name: _compared(found[name], row, plan) for name, row in jobs.items()},
        )
        save_comparison(result.comparison, comparison)
        draw_comparison(comparison, result.picture)
    notes = tuple(note for note in (remark, *(mixture.note for mixture in found.values())) if note)
    return CompareResult(comparison, result.comparison, True, f"wrote {result.comparison}", notes)


def confirming_seeds(search_seed: int, *, num_seeds: int) -> tuple[int, ...]:
    """Seeds of the proxies that confirm the mixtures of a search with this seed, the same for every method and target.

    >>> confirming_seeds(0, num_seeds=2), confirming_seeds(1, num_seeds=2)
    ((100, 101), (200, 201))
    """
    first = (search_seed + 1) * _SEEDS_OF_A_SEARCH
    return tuple(range(first, first + num_seeds))


def _finished(
    path: Path, plan: SearchPlan, wanted: Sequence[Method], *, seeds: tuple[int, ...], replace: bool
) -> Comparison | None:
    """The result on disk if it is what is asked for. One with other methods or seeds is made anew, from the same runs.

    Raises:
        MismatchError: it belongs to another recipe or other data, and is not to be replaced.
    """
    if not path.exists():
        return None
    found = load_comparison(path)
    is_same = {"recipe": found.recipe_hash == plan.recipe_hash, "data": plan.catalog.is_or_completes(found.catalog_hash)}
    differing = [what for what, same in is_same.items() if not same]
    if differing and replace:
        return None
    if differing:
        remedy = "give another workdir, or make it anew with --replace (proxies that still fit are kept)"
        raise MismatchError(path, f"made with another {' and '.join(differing)}", remedy)
    same = found.seeds == seeds and set(found.methods) == {method.name for method in wanted}
    return found if same else None


def _find_mixtures(
    wanted: Sequence[Method], plan: SearchPlan, workers: Workers, *, side_by_side: bool | None
) -> dict[str, FoundMixture]:
    """The mixture of every method; fastmix first and alone, so that its seconds are those of a machine it has to itself."""
    kinds = {method.kind for method in wanted}
    found = {method.name: stated_mixture(method, plan) for method in wanted if method.is_stated}
    if {"fastmix", "trials"} & kinds:
        searched = search_mixture(plan, quiet=workers.quiet)
        found |= {"fastmix": found_by_search(searched, plan), "trials": found_by_trials(searched, plan)}
    if "paper" in kinds:
        as_published = plan.as_published()
        found["paper"] = found_by_search(search_mixture(as_published, quiet=workers.quiet), as_published)
    centres = {method.name: centre_of(method, plan) for method in wanted if method.uses_swarm}
    swarms = {
        method.name: swarm_jobs(plan, centres[method.name], num_proxies=method.num_proxies)
        for method in wanted
        if method.uses_swarm
    }
    one_source = mixmin_jobs(plan) if "mixmin" in kinds else []
    reweighting = [ReweightingJob(plan, kind) for kind in ("doge", "doremi") if kind in kinds]
    proxies = [job for swarm in swarms.values() for job in swarm] + [job.trained for job in one_source]
    proxies += [job.reference for job in reweighting if job.kind == "doremi" and job.finished() is None]
    run_side_by_side(proxies, workers, description="searches", wanted=side_by_side)
    missing: list[Job[Any]] = [job for job in reweighting if job.finished() is None]
    missing += unfinished([job for swarm in swarms.values() for job in swarm])
    missing += [job for job in one_source if job.finished() is None]
    run_jobs(missing, workers, description="searches")
    for job in reweighting:
        result = job.finished()
        assert result is not None
        found[job.kind] = result
    for method in wanted:
        if method.uses_swarm:
            found[method.name] = fit_swarm(method, plan, centres[method.name], swarms[method.name])
    if one_source:
        found["mixmin"] = fit_mixmin(plan, one_source)
    return {method.name: found[method.name] for method in wanted}


def _confirmations(found: Mapping[str, FoundMixture], plan: SearchPlan, *, seeds: Sequence[int]) -> dict[str, list[ProxyJob]]:
    """Fresh proxies of each mixture, brought within the recipe's constraints as a production run would have to."""
    names, jobs = tuple(plan.target.weights()), {}
    for name, mixture in found.items():
        weights_K = plan.constraints.project(np.array(mixture.weights))
        jobs[name] = [proxy_job(plan, weights_K, names=names, half="unseen", seed=seed) for seed in seeds]
    return jobs


def _compared(found: FoundMixture, confirmed: Sequence[ProxyJob], plan: SearchPlan) -> ComparedMethod:
    importance, losses = plan.target.weights(), [job.result().losses for job in confirmed]
    return ComparedMethod(
        weights=dict(zip(plan.catalog.sources, confirmed[0].weights, strict=True)),
        target_loss=tuple(sum(importance[name] * each[name] for name in importance) for each in losses),
        target_losses_by_name={name: tuple(each[name] for each in losses) for name in importance},
        search_tokens=found.cost.tokens,
        search_seconds=round(found.cost.seconds, 3),
        search_flops=found.cost.flops,
    )
