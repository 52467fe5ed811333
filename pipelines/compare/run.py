"""`fastmix compare`: every method finds a mixture at its own cost, and fresh proxies say what each mixture is worth.

Searches see the search half of the target only. Each mixture is confirmed by proxies of the search's budget that no search trained, with
the same seeds for every method, on the unseen half; so methods are compared seed by seed, in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.artefacts import exclusive_lock, read_json, write_json
from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog, load_catalog
from pipelines.compare.methods import Method, parse_methods
from pipelines.compare.pool import Job, Result, run_jobs
from pipelines.compare.proxies import ProxyJob, RunResult, unfinished
from pipelines.compare.searches import Found, ReweightingJob, fit_swarm, search_fastmix, stated_mixture, swarm_jobs
from pipelines.compare.table import draw_comparison

SCHEMA_VERSION = 1
_FIRST_SEED = 100


@dataclass(frozen=True)
class CompareResult:
    """What a call of `compare` came to.

    Attributes:
        content: of `compare.json`.
        did_work: False if it was there already.
    """

    content: dict[str, Any]
    path: Path
    did_work: bool
    message: str


@dataclass(frozen=True)
class Workers:
    """Where proxies are trained.

    Attributes:
        num_workers: processes on this machine; None for one per core.
        scheduler: address of a running Dask cluster instead.
    """

    num_workers: int | None = None
    scheduler: str | None = None
    quiet: bool = False

    def run(self, jobs: Sequence[Job[Result]], description: str) -> list[Result]:
        """Results of the jobs in their order."""
        return run_jobs(jobs, description=description, num_workers=self.num_workers, scheduler=self.scheduler, quiet=self.quiet)


def compare(
    recipe: Recipe,
    *,
    methods: str,
    num_seeds: int,
    workers: Workers | None = None,
    replace: bool = False,
    directory: Path | None = None,
) -> CompareResult:
    """Compare methods on a preprocessed workdir, or go on with a comparison that was stopped.

    Proxies and searches are kept under `compare` in the workdir by what decides them, whatever the target and the list of methods.

    Args:
        methods: names separated by commas, uniform among them; see `compare_methods`.
        num_seeds: confirming proxies of each mixture.
        replace: discard a result that was made from another recipe or other data.
        directory: folder of compare.json and compare.svg; `compare` in the workdir when not given.

    Raises:
        RecipeError: a method or the recipe cannot work; found before anything is trained.
        MismatchError: the folder holds a comparison of another recipe or other data.
    """
    from train.search.artefacts import recipe_hash
    from train.search.search import check_search

    wanted, workers = parse_methods(methods), workers or Workers()
    catalog = load_catalog(recipe.paths.catalog)
    check_search(recipe, catalog, num_ranks=1)
    path = (directory or catalog.root / "compare") / "compare.json"
    seeds = [recipe.search.seed + _FIRST_SEED + number for number in range(num_seeds)]
    head = {
        "schema_version": SCHEMA_VERSION,
        "recipe_hash": recipe_hash(recipe, catalog),
        "catalog_hash": catalog.fingerprint,
        "seeds": seeds,
    }
    done = _finished(path, head, wanted, replace=replace)
    if done is not None:
        return CompareResult(done, path, False, f"{path} is complete and matches the recipe; nothing to do")
    with _hold(catalog.root / "compare"):
        found = _find_mixtures(wanted, recipe, catalog, workers)
        jobs = _confirmations(found, recipe, catalog, seeds=seeds)
        workers.run(unfinished([job for row in jobs.values() for job in row], catalog), "confirm")
        entries = {
            name: _entry(found[name], [_result_of(job, catalog) for job in row], recipe, catalog) for name, row in jobs.items()
        }
        content = {**head, "token_budget": recipe.search.token_budget, "target": recipe.target.weights(), "methods": entries}
        write_json(path, content)
        draw_comparison(path)
    return CompareResult(content, path, True, f"wrote {path}")


def _finished(path: Path, head: Mapping[str, Any], wanted: Sequence[Method], *, replace: bool) -> dict[str, Any] | None:
    """The result on disk if it is what is asked for. One with other methods or seeds is made anew, from the same runs.

    Raises:
        MismatchError: it belongs to another recipe or other data, and is not to be replaced.
    """
    if not path.exists():
        return None
    content: dict[str, Any] = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise CorruptArtefactError(
            f"{path}: not a comparison of schema version {SCHEMA_VERSION}; delete it and run the command again"
        )
    differing = [what for what, key in (("recipe", "recipe_hash"), ("data", "catalog_hash")) if content[key] != head[key]]
    if differing:
        if replace:
            return None
        raise MismatchError(
            f"{path}: made with another {' and '.join(differing)}; give another workdir, or make it anew with --replace (proxies that "
            "still fit are kept)"
        )
    same = content["seeds"] == head["seeds"] and set(content["methods"]) == {method.name for method in wanted}
    return content if same else None


@contextmanager
def _hold(directory: Path) -> Iterator[None]:
    """Keep other comparisons out of the workdir's runs."""
    directory.mkdir(parents=True, exist_ok=True)
    busy = f"{directory}: another fastmix compare is running here; wait for it or choose another workdir"
    with exclusive_lock(directory / ".lock", busy=busy):
        yield


def _find_mixtures(wanted: Sequence[Method], recipe: Recipe, catalog: Catalog, workers: Workers) -> dict[str, Found]:
    """The mixture of every method; fastmix first and alone, so that its seconds are those of a machine it has to itself."""
    kinds = {method.kind for method in wanted}
    found = {method.name: stated_mixture(method, recipe, catalog) for method in wanted if method.is_stated}
    if "fastmix" in kinds:
        found["fastmix"] = search_fastmix(recipe, catalog, quiet=workers.quiet)
    swarm = swarm_jobs(recipe, catalog, num_proxies=max(method.num_proxies for method in wanted))
    reweighting = [ReweightingJob(recipe, kind) for kind in ("doge", "doremi") if kind in kinds]
    missing: list[Job[Any]] = [job for job in reweighting if job.finished(catalog) is None]
    workers.run([*missing, *unfinished(swarm, catalog)], "searches")
    for job in reweighting:
        result = job.finished(catalog)
        assert result is not None
        found[job.kind] = result
    for method in wanted:
        if method.uses_swarm:
            found[method.name] = fit_swarm(method, recipe, catalog, swarm[: method.num_proxies])
    return {method.name: found[method.name] for method in wanted}


def _confirmations(
    found: Mapping[str, Found], recipe: Recipe, catalog: Catalog, *, seeds: Sequence[int]
) -> dict[str, list[ProxyJob]]:
    """Fresh proxies of each mixture, brought within the recipe's constraints as a production run would have to."""
    from train.mixture.constraints import constraints_of

    constraints, names = constraints_of(recipe, catalog), tuple(recipe.target.weights())
    jobs = {}
    for name, mixture in found.items():
        weights = tuple(constraints.project(np.array(mixture.weights)).tolist())
        jobs[name] = [ProxyJob(recipe, weights, seed, names, "unseen") for seed in seeds]
    return jobs


def _result_of(job: ProxyJob, catalog: Catalog) -> tuple[ProxyJob, RunResult]:
    result = job.finished(catalog)
    assert result is not None
    return job, result


def _entry(found: Found, confirmed: Sequence[tuple[ProxyJob, RunResult]], recipe: Recipe, catalog: Catalog) -> dict[str, Any]:
    importance = recipe.target.weights()
    losses = [result.losses for _, result in confirmed]
    return {
        "weights": dict(zip(catalog.sources, confirmed[0][0].weights, strict=True)),
        "target_loss": [sum(importance[name] * each[name] for name in importance) for each in losses],
        "target_losses_by_name": {name: [each[name] for each in losses] for name in importance},
        "search_tokens": found.cost.tokens,
        "search_seconds": round(found.cost.seconds, 3),
        "search_flops": found.cost.flops,
    }
