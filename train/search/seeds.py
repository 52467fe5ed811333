"""Several searches that differ in their seed only: where each lies, and what they come to together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.artefacts import atomic_file
from fastmix_data.errors import MismatchError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Limit, Mixture, load_mixture, save_mixture
from fastmix_data.shards.catalog import Catalog
from train.mixture.constraints import constraints_of
from train.proxy.checkpoint import check_checkpoint
from train.search.artefacts import finished_mixture, run_identity, search_directory
from train.search.uncertainty import groups_of_pairs, student_t_quantile


def recipes_of_seeds(recipe: Recipe, num_seeds: int) -> list[Recipe]:
    """The recipe with search.seed, search.seed + 1 and so on, each with a folder `seed-<s>` of its own in the search's folder."""
    first, directory = recipe.search.seed, search_directory(recipe)
    return [
        recipe.model_copy(update={"search": recipe.search.model_copy(update={"seed": seed})}).searching_in(
            directory / f"seed-{seed}"
        )
        for seed in range(first, first + num_seeds)
    ]


def adopt_single_search(recipe: Recipe, catalog: Catalog, *, num_ranks: int, replace: bool) -> None:
    """Make the search that lies in the search's folder itself, finished or stopped, the first of several; of another recipe, replace it.

    A finished one is copied, so that the folder is never without a mixture; it is overwritten by the mean in the end.

    Raises:
        MismatchError: a search of another recipe, other data or another number of ranks lies here, and `replace` is not given.
    """
    directory, first = search_directory(recipe), recipes_of_seeds(recipe, 1)[0]
    folder = search_directory(first)
    single = finished_mixture(recipe, catalog, replace=replace)
    is_done = finished_mixture(first, catalog, replace=replace) is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("reference.json", "start.json"):  # each says which search it is of, and is made anew if not of this one
        if (directory / name).exists() and not (folder / name).exists():
            shutil.copy2(directory / name, folder / name)
    if single is None:
        (directory / "mixture.json").unlink(missing_ok=True)
    elif not single.seed_weights and not is_done:
        for name in ("recipe.json", "trajectory.parquet"):
            if (directory / name).exists():
                shutil.copy2(directory / name, folder / name)
        save_mixture(folder / "mixture.json", single)
        is_done = True
    _adopt_checkpoints(recipe, catalog, num_ranks=num_ranks, replace=replace, to=None if is_done else first)


def _adopt_checkpoints(recipe: Recipe, catalog: Catalog, *, num_ranks: int, replace: bool, to: Recipe | None) -> None:
    directory = search_directory(recipe)
    checkpoints = directory / "checkpoints"
    if not checkpoints.exists():
        return
    try:
        check_checkpoint(checkpoints, identity=run_identity(recipe, catalog, num_ranks))
    except MismatchError:
        if not replace:
            raise
        to = None
    if to is None or (search_directory(to) / "checkpoints").exists():
        shutil.rmtree(checkpoints)
        return
    checkpoints.rename(search_directory(to) / "checkpoints")


def write_mean(recipe: Recipe, catalog: Catalog, recipes: Sequence[Recipe]) -> None:
    """Write the mean of finished searches as the search's own mixture; the trajectory beside it is the first one's."""
    directory, first = search_directory(recipe), search_directory(recipes[0])
    mixtures = [load_mixture(search_directory(one) / "mixture.json") for one in recipes]
    mean = mean_of_searches(mixtures, limit_tolerance=recipe.target.limit_tolerance)
    constraints = constraints_of(recipe, catalog)
    mean_K = constraints.project(mean.weights_K(catalog.sources))  # feasible but for rounding: the set is convex
    binding = constraints.binding(mean_K)
    mean = mean.model_copy(update={"weights": dict(zip(catalog.sources, mean_K.tolist(), strict=True)), "binding": binding})
    with atomic_file(directory / "trajectory.parquet") as file:
        file.write((first / "trajectory.parquet").read_bytes())
    save_mixture(directory / "mixture.json", mean)


def mean_of_searches(mixtures: Sequence[Mixture], *, limit_tolerance: float = 0.0) -> Mixture:
    """What N searches come to, N >= 2: mean weights, sums of their costs, and how far they disagree.

    - `seed_interval`: mean +- t s sqrt(1 + 1/N), s being the standard deviation over seeds and t the 95% quantile of Student's t with
      N - 1 degrees of freedom: 90% of the answers of one more search lie in it. It is wide for N = 2, where little is known of s.
    - `interval`: means of the lower and of the upper ends, the noise that one trajectory knows of.
    - `signal_to_noise`: sum over seeds / sqrt(N), as searches are independent (Stouffer).
    - `initial_weights`: their mean; `start_trials`: those of all seeds, one seed after another.
    - `interchangeable`: pairs that more than half of the searches could not tell apart.
    - `limits`: mean losses against mean references; `worst`: the largest regret of any search.
    """
    names, number = list(mixtures[0].weights), len(mixtures)
    weights_NK = np.array([mixture.weights_K(names) for mixture in mixtures])
    mean_K = weights_NK.mean(axis=0)
    half_K = student_t_quantile(0.95, number - 1) * weights_NK.std(axis=0, ddof=1) * sqrt(1 + 1 / number)
    signal_NK = np.array([[mixture.signal_to_noise.get(name, 0.0) for name in names] for mixture in mixtures])
    worst = [mixture.worst for mixture in mixtures if mixture.worst is not None]
    return mixtures[0].model_copy(
        update={
            "weights": dict(zip(names, mean_K.tolist(), strict=True)),
            "interval": {name: _mean_interval(mixtures, name) for name in names if name in mixtures[0].interval},
            "initial_weights": _mean_by_name([mixture.initial_weights for mixture in mixtures]),
            "start_trials": {
                power: [loss for mixture in mixtures for loss in mixture.start_trials[power]]
                for power in mixtures[0].start_trials
            },
            "seed_interval": _intervals(names, np.clip(mean_K - half_K, 0, 1), np.clip(mean_K + half_K, 0, 1)),
            "seed_weights": {str(mixture.seed): mixture.weights for mixture in mixtures},
            "signal_to_noise": dict(zip(names, (signal_NK.sum(axis=0) / sqrt(number)).tolist(), strict=True)),
            "interchangeable": _common_groups(mixtures, names, mean_K),
            "stopped": _why_they_ended(mixtures),
            "search_tokens": sum(mixture.search_tokens for mixture in mixtures),
            "search_seconds": round(sum(mixture.search_seconds for mixture in mixtures), 3),
            "num_steps": sum(mixture.num_steps for mixture in mixtures),
            "num_updates": sum(mixture.num_updates for mixture in mixtures),
            "target_loss": _mean_by_name([mixture.target_loss for mixture in mixtures]),
            "target_losses": {
                name: _mean_by_name([mixture.target_losses[name] for mixture in mixtures]) for name in mixtures[0].target_losses
            },
            "target_weights": _mean_by_name([mixture.target_weights for mixture in mixtures]),
            "limits": _mean_limits(mixtures, tolerance=limit_tolerance),
            "worst": max(worst, key=lambda target: target.regret, default=None),
        }
    )


def _intervals(names: Sequence[str], low_K: Float64s, high_K: Float64s) -> dict[str, tuple[float, float]]:
    return {name: (low, high) for name, low, high in zip(names, low_K.tolist(), high_K.tolist(), strict=True)}


def _mean_interval(mixtures: Sequence[Mixture], name: str) -> tuple[float, float]:
    low, high = np.mean([mixture.interval[name] for mixture in mixtures], axis=0).tolist()
    return low, high


def _mean_by_name(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([record[name] for record in records])) for name in records[0]}


def _mean_limits(mixtures: Sequence[Mixture], *, tolerance: float) -> dict[str, Limit]:
    limits = {}
    for name in mixtures[0].limits:
        loss = float(np.mean([mixture.limits[name].loss for mixture in mixtures]))
        reference = float(np.mean([mixture.limits[name].reference for mixture in mixtures]))
        limits[name] = Limit(reference=reference, loss=loss, kept=loss <= reference + tolerance)
    return limits


def _common_groups(mixtures: Sequence[Mixture], names: Sequence[str], weights_K: Float64s) -> list[list[str]]:
    index, votes_KK = {name: k for k, name in enumerate(names)}, np.zeros((len(names), len(names)))
    for mixture in mixtures:
        for group in mixture.interchangeable:
            members = [index[name] for name in group]
            votes_KK[np.ix_(members, members)] += 1
    np.fill_diagonal(votes_KK, 0)
    return [[names[k] for k in group] for group in groups_of_pairs(votes_KK > len(mixtures) / 2, weights_K)]


def _why_they_ended(mixtures: Sequence[Mixture]) -> str:
    reasons = {mixture.stopped for mixture in mixtures}
    if len(reasons) == 1:
        return f"each of {len(mixtures)} searches {reasons.pop()}"
    return "; ".join(f"seed {mixture.seed} {mixture.stopped}" for mixture in mixtures)
