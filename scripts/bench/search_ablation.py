"""What each choice of the search is worth: one search per variant, target and seed, its mixture confirmed by a fresh proxy.

    python scripts/bench/search_ablation.py [--workdir DIR] [--seeds 3] [--from-uniform] [--targets all literary code qa]

Every run is a line of WORKDIR/ablation.jsonl, so that a stopped call goes on and new variants cost only themselves. A mixture is scored
by the loss of a fresh proxy on the half of the target that no search saw; variants are compared seed by seed with the default
search and with the uniform mixture. Searches run on one thread each, as many at a time as there are cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from corpus_recipe import TARGETS, add_corpus_argument, corpus_of, corpus_recipe, prepare, with_target

from fastmix_data.artefacts import hash_of
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import load_catalog

UNIFORM, BIGRAM, DEFAULT = "uniform", "bigram alone", "default"
# The scores without a prior, where differences between them show; with it the same call measures what is left of those.
FROM_UNIFORM: dict[str, Any] = {
    "initial_weights": "uniform",
    "prior_strength": 0.0,
    "weights_learning_rate": 0.3,
    "average_fraction": 0.5,
    "update_interval": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    UNIFORM: {},
    BIGRAM: {},
    DEFAULT: {},
    "from uniform, no pull, last 1/2, interval 8": FROM_UNIFORM,
    "prior strength 0": {"prior_strength": 0.0},
    "prior strength 0.3": {"prior_strength": 0.3},
    "prior strength 1": {"prior_strength": 1.0},
    "scores not shrunk": {"shrink_scores": False},
    "no trials": {"trial_fraction": 0.0},
    "exploration 0": {"exploration": 0.0},
    "exploration 1": {"exploration": 1.0},
    "adam": {"weights_optimizer": "adam"},
    "adam, raw": {"weights_optimizer": "adam", "precondition": False},
    "raw": {"precondition": False},
    "target memory 0": {"target_memory": 0.0},
    "target memory 0.9": {"target_memory": 0.9},
    "last block": {"hypergradient": "last_block"},
    "last block, raw": {"hypergradient": "last_block", "precondition": False},
    "head": {"hypergradient": "head"},
    "head, raw": {"hypergradient": "head", "precondition": False},
    "target batch 8": {"target_batch": 8},
    "target batch 32": {"target_batch": 32},
    "smoothing 0": {"score_smoothing": 0.0},
    "smoothing 0.8": {"score_smoothing": 0.8},
    "per gradient norm": {"score": "per_gradient_norm"},
    "interval 4": {"update_interval": 4},
    "interval 8": {"update_interval": 8},
    "interval 16": {"update_interval": 16},
    "half the rate": {"weights_learning_rate": 0.15},
    "twice the rate": {"weights_learning_rate": 0.6},
    "average of last 1/4": {"average_fraction": 0.25},
    "average of last 1/2": {"average_fraction": 0.5},
    "average of all": {"average_fraction": 1.0},
}


def varied(recipe: Recipe, changes: dict[str, Any], *, seed: int) -> Recipe:
    """The recipe with other settings of the search."""
    search = recipe.search.model_validate({**recipe.search.model_dump(), **changes, "seed": seed})
    return recipe.model_copy(update={"search": search}).located(recipe.base)


def learned(recipe: Recipe) -> Mixture:
    """What `fastmix search` finds, in a folder that does not stay."""
    from train.search.search import search

    with tempfile.TemporaryDirectory(prefix="fastmix-ablation-") as folder:
        return search(recipe.searching_in(Path(folder)), quiet=True).mixture


def measure(recipe: Recipe, variant: str, target: str, seed: int) -> dict[str, Any]:
    """One search and its confirmation, in a worker process."""
    from train.mixture.stated import start_and_prior
    from train.proxy.engine import process_group
    from train.proxy.training import target_losses, train_on_mixture

    catalog = load_catalog(recipe.paths.catalog)
    seconds = 0.0
    if variant == UNIFORM:
        weights = [1 / len(catalog.sources)] * len(catalog.sources)
    elif variant == BIGRAM:
        weights = start_and_prior(recipe, catalog)[0].tolist()
    else:
        found = learned(recipe)
        weights, seconds = found.weights_K(catalog.sources).tolist(), found.search_seconds
    with process_group(rank=0, world_size=1):
        proxy = train_on_mixture(recipe, catalog, np.array(weights), seed=seed + 100)
        names = list(recipe.target.weights())
        losses = target_losses(proxy.engine, recipe, catalog, names=names, half="unseen")
    loss = sum(weight * losses[name] for name, weight in recipe.target.weights().items())
    return {"target": target, "seed": seed, "weights": weights, "seconds": seconds, "loss": loss, "losses": losses}


def jobs(recipe: Recipe, options: argparse.Namespace) -> Iterator[tuple[str, Recipe, str, str, int]]:
    """(key, recipe, variant, target, seed), all variants of a seed before the next seed."""
    for seed in range(options.seeds):
        for variant in options.variants:
            for target in options.targets:
                job = varied(with_target(recipe, target), VARIANTS[variant], seed=seed)
                key = hash_of(
                    [
                        variant if variant in (UNIFORM, BIGRAM) else "",
                        job.search.model_dump(mode="json"),
                        job.target.model_dump(mode="json"),
                    ]
                )
                yield key, job, variant, target, seed


def run_all(recipe: Recipe, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Do what the file does not have yet; returns all results by key."""
    path = options.workdir / "ablation.jsonl"
    done = {row["key"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    missing = {key: job for key, *job in jobs(recipe, options) if key not in done}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool, path.open("a") as file:
        pending = {pool.submit(measure, *job): key for key, job in missing.items()}
        for number, future in enumerate(as_completed(pending), 1):
            done[pending[future]] = {"key": pending[future], **future.result()}
            file.write(json.dumps(done[pending[future]]) + "\n")
            file.flush()
            print(f"\r{number} of {len(missing)} runs", end="", flush=True)
    print()
    return done


def losses_of(variant: str, recipe: Recipe, options: argparse.Namespace, done: dict[str, dict[str, Any]]) -> np.ndarray:
    """Loss of the confirming proxies, shape (targets, seeds)."""
    found = {(target, seed): done[key]["loss"] for key, _, name, target, seed in jobs(recipe, options) if name == variant}
    return np.array([[found[target, seed] for seed in range(options.seeds)] for target in options.targets])


def print_table(recipe: Recipe, options: argparse.Namespace, done: dict[str, dict[str, Any]]) -> None:
    """Markdown: loss minus that of the uniform mixture, seed by seed, and minus that of the default."""
    uniform, default = (losses_of(variant, recipe, options, done) for variant in (UNIFORM, DEFAULT))
    print(f"| variant | {' | '.join(options.targets)} | mean | against default | seeds and targets won |")
    print("|---" * (len(options.targets) + 4) + "|")
    for variant in options.variants:
        losses = losses_of(variant, recipe, options, done)
        gains, against = losses - uniform, losses - default
        error = against.std(ddof=1) / against.size**0.5 if against.size > 1 else 0.0
        cells = " | ".join(f"{gain:+.3f}" for gain in gains.mean(axis=1))
        won = f"{int((against < 0).sum())} of {against.size}" if variant != DEFAULT else ""
        print(f"| {variant} | {cells} | {gains.mean():+.4f} | {against.mean():+.4f} ± {error:.4f} | {won} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_argument(parser)
    parser.add_argument("--workdir", type=Path, default=Path("bench-run"))
    parser.add_argument("--token-budget", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["all", "literary", "code", "qa"])
    parser.add_argument(
        "--from-uniform", action="store_true", help="measure variants of the search without a prior, from uniform"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.variants = list(dict.fromkeys([UNIFORM, DEFAULT, *options.variants]))
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    if options.from_uniform:
        recipe = varied(recipe, FROM_UNIFORM, seed=recipe.search.seed)
    prepare(recipe)
    print_table(recipe, options, run_all(recipe, options))


if __name__ == "__main__":
    main()
