"""What a search leaves in its folder, and whether what lies there belongs to the recipe at hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.artefacts import exclusive_lock, hash_of, read_json, sha256_of_file, write_json
from fastmix_data.errors import MismatchError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture, load_mixture, save_mixture
from fastmix_data.shards.catalog import Catalog
from train.mixture.constraints import constraints_of
from train.proxy.checkpoint import check_checkpoint
from train.proxy.engine import ProxyEngine
from train.search.proxy_run import ProxyRun
from train.search.start import Start
from train.search.stopping import why_it_ended
from train.search.uncertainty import averaged_weights, uncertainty_of
from train.target.outcome import Comparison, LossesByTarget, outcome

_SECTIONS = ("target", "proxy", "deepspeed", "search")


def search_directory(recipe: Recipe) -> Path:
    """Folder that holds mixture.json, trajectory.parquet and checkpoints."""
    return recipe.search_path


def recipe_hash(recipe: Recipe, catalog: Catalog) -> str:
    """Hash of the sections of the recipe that a search depends on."""
    return hash_of(_sections(recipe, catalog))


def save_recipe(recipe: Recipe, catalog: Catalog) -> None:
    """Write the sections that a search depends on beside its results."""
    write_json(search_directory(recipe) / "recipe.json", _sections(recipe, catalog))


def _sections(recipe: Recipe, catalog: Catalog) -> dict[str, Any]:
    """The search's own sections; and of emit what it went by, where the production run bounds the mixture or the data seen."""
    sections = {name: getattr(recipe, name).model_dump(mode="json") for name in _SECTIONS}
    emit = recipe.emit.model_dump(mode="json")
    if constraints_of(recipe, catalog).capped_K.any():
        return {**sections, "emit": {name: emit[name] for name in ("token_budget", "max_epochs")}}
    return {**sections, "emit": {"token_budget": emit["token_budget"]}} if recipe.share_seen < 1 else sections


def finished_mixture(recipe: Recipe, catalog: Catalog, *, replace: bool, num_seeds: int | None = None) -> Mixture | None:
    """A complete mixture of this recipe and data, if there is one.

    Args:
        num_seeds: searches that it must be the mean of; None for any number. One of fewer searches is there to be added to.

    Raises:
        MismatchError: a mixture of another recipe, other data or more searches lies here, and `replace` is not given.
    """
    path = search_directory(recipe) / "mixture.json"
    if not path.exists():
        return None
    mixture = load_mixture(path)
    differing = [
        what
        for what, then, now in (
            ("data", mixture.catalog_hash, catalog.fingerprint),
            ("recipe", mixture.recipe_hash, recipe_hash(recipe, catalog)),
        )
        if then != now
    ]
    if not differing:
        return mixture if _has_searches(path, mixture, num_seeds, replace=replace) else None
    if not replace:
        changed = _changed_keys(recipe, catalog)
        raise MismatchError(
            f"{path}: made with another {' and '.join(differing)}{f' ({changed})' if changed else ''}; give another workdir, or start "
            "afresh with --replace"
        )
    return None


def _has_searches(path: Path, mixture: Mixture, num_seeds: int | None, *, replace: bool) -> bool:
    found = max(1, len(mixture.seed_weights))
    if num_seeds is None or num_seeds >= found or replace:
        return num_seeds in (None, found)
    raise MismatchError(
        f"{path}: the mean of {found} searches, and --seeds {num_seeds} asks for fewer; leave --seeds out, or make it anew with --replace"
    )


def _changed_keys(recipe: Recipe, catalog: Catalog) -> str:
    """Names of the keys that differ from the recipe saved beside the mixture, as far as it is there."""
    path = search_directory(recipe) / "recipe.json"
    if not path.exists():
        return ""
    then = read_json(path)
    now = _sections(recipe, catalog)
    return ", ".join(
        f"{section}.{key}"
        for section in dict.fromkeys([*now, *then])
        for key in dict.fromkeys([*now.get(section, {}), *then.get(section, {})])
        if then.get(section, {}).get(key) != now.get(section, {}).get(key)
    )


def run_identity(recipe: Recipe, catalog: Catalog, num_ranks: int) -> dict[str, Any]:
    """What a run must share with a checkpoint to go on from it."""
    return {"recipe": recipe_hash(recipe, catalog), "data": catalog.fingerprint, "number_of_ranks": num_ranks}


def discard_other_search(directory: Path, *, identity: dict[str, Any], replace: bool) -> None:
    """Make way for a run: keep the checkpoints if they are its own, and with `replace` remove those of another.

    Raises:
        MismatchError: another search was stopped here.
    """
    checkpoints = directory / "checkpoints"
    try:
        check_checkpoint(checkpoints, identity=identity)
    except MismatchError:
        if not replace:
            raise
        shutil.rmtree(checkpoints)
    (directory / "mixture.json").unlink(missing_ok=True)


@contextmanager
def hold_search(directory: Path) -> Iterator[None]:
    """Keep other searches out of a workdir."""
    directory.mkdir(parents=True, exist_ok=True)
    busy = f"{directory}: another search is running here; wait for it or choose another workdir"
    with exclusive_lock(directory / ".lock", busy=busy):
        yield


def write_result(
    recipe: Recipe,
    catalog: Catalog,
    *,
    start: Start,
    run: ProxyRun,
    engine: ProxyEngine,
    losses: LossesByTarget,
    comparison: Comparison | None,
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
    directory, settings = search_directory(recipe), recipe.search
    run.trajectory.save(directory / "trajectory.parquet", sources=catalog.sources, targets=list(recipe.target.weights()))
    mean_K, low_K, high_K = averaged_weights(run.trajectory.weights_since(run.averaged_since), seed=settings.seed)
    constraints = constraints_of(recipe, catalog)
    mean_K = constraints.project(mean_K)  # an average of feasible mixtures is one; this takes its rounding away
    low_K, high_K = np.minimum(low_K, mean_K), np.maximum(high_K, mean_K)
    mixture = Mixture(
        weights=dict(zip(catalog.sources, mean_K.tolist(), strict=True)),
        interval={name: (low, high) for name, low, high in zip(catalog.sources, low_K.tolist(), high_K.tolist(), strict=True)},
        initial_weights=dict(zip(catalog.sources, run.initial_K.tolist(), strict=True)),
        start_trials=start.trial_losses,
        method=f"fastmix ({settings.hypergradient} parameters)",
        seed=settings.seed,
        search_tokens=num_tokens,
        search_seconds=round(seconds, 3),
        num_steps=run.step,
        num_updates=run.mixture.num_updates,
        **outcome(
            recipe.target, losses, comparison=comparison, weights_UG=run.trajectory.target_weights_since(run.averaged_since)
        ),
        **uncertainty_of(
            run.trajectory,
            sources=catalog.sources,
            weights_K=mean_K,
            averaged_since=run.averaged_since,
            exploration=settings.exploration,
        ),
        stopped=why_it_ended(run.still, search=recipe.main_run.search),
        binding=constraints.binding(mean_K),
        num_parameters=engine.num_parameters,
        world_size=engine.world_size,
        catalog_hash=catalog.fingerprint,
        recipe_hash=recipe_hash(recipe, catalog),
        trajectory_sha256=sha256_of_file(directory / "trajectory.parquet"),
    )
    save_mixture(directory / "mixture.json", mixture)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
