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
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from corpus_recipe import TARGETS, add_corpus_argument, corpus_of, corpus_recipe, prepare, with_target

from fastmix_data.atomic_files import hash_of
from fastmix_data.machine import num_cores
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from fastmix_data.workdir import SearchFolder
from train.proxy.engine import process_group
from train.proxy.training import ProxyPlan, train_on_mixture
from train.search.plan import SearchPlan, plan_search
from train.search.search import search
from train.search.start import stated_start
from train.target.target import target_losses

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
    """The recipe with other settings of the search, and a seed."""
    settings = recipe.search.model_validate({**recipe.search.model_dump(), **changes})
    training = recipe.required("training").with_seed(seed)
    return recipe.model_copy(update={"search": settings, "training": training}).located(recipe.base)


def learned(plan: SearchPlan) -> Mixture:
    """What `fastmix search` finds, in a folder that does not stay."""
    with tempfile.TemporaryDirectory(prefix="fastmix-ablation-") as folder:
        return search(plan.in_folder(SearchFolder(Path(folder))), quiet=True).mixture


def confirm(proxy: ProxyPlan, weights: list[float], *, seed: int, names: list[str], num_sequences: int) -> dict[str, float]:
    """Losses of a fresh proxy, trained on a mixture, on the half of each target that no search saw."""
    with process_group(rank=0, world_size=1):
        engine = train_on_mixture(proxy, np.array(weights), seed=seed).engine
        losses = target_losses(engine, proxy, names=names, half="unseen", num_sequences=num_sequences)
        engine.close()
    return losses


def measure(plan: SearchPlan, variant: str, target: str, seed: int) -> dict[str, Any]:
    """One search and its confirmation, in a worker process."""
    sources, importance, seconds = plan.catalog.sources, plan.target.weights(), 0.0
    if variant == UNIFORM:
        weights = [1 / len(sources)] * len(sources)
    elif variant == BIGRAM:
        weights = stated_start(plan).initial
    else:
        found = learned(plan)
        weights, seconds = found.weights_K(sources).tolist(), found.search.seconds
    names, num_sequences = list(importance), plan.search.eval_sequences
    losses = confirm(plan.proxy, weights, seed=seed + 100, names=names, num_sequences=num_sequences)
    loss = sum(weight * losses[name] for name, weight in importance.items())
    return {"target": target, "seed": seed, "weights": weights, "seconds": seconds, "loss": loss, "losses": losses}


def jobs(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> dict[tuple[str, str, int], tuple[str, SearchPlan]]:
    """Key and plan by variant, target and seed, all variants of a seed before the next seed."""
    found = {}
    for seed in range(options.seeds):
        for variant in options.variants:
            for target in options.targets:
                plan = plan_search(varied(with_target(recipe, target), VARIANTS[variant], seed=seed), catalog)
                key = hash_of([variant if variant in (UNIFORM, BIGRAM) else "", plan.sections.model_dump(mode="json")])
                found[variant, target, seed] = key, plan
    return found


def run_all(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> dict[tuple[str, str, int], float]:
    """Do what the file does not have yet; returns losses by variant, target and seed."""
    path = options.workdir / "ablation.jsonl"
    done = {row["key"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    wanted = jobs(recipe, catalog, options)
    missing = {key: (plan, *job) for job, (key, plan) in wanted.items() if key not in done}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool, path.open("a") as file:
        pending = {pool.submit(measure, *job): key for key, job in missing.items()}
        for number, future in enumerate(as_completed(pending), 1):
            done[pending[future]] = {"key": pending[future], **future.result()}
            file.write(json.dumps(done[pending[future]]) + "\n")
            file.flush()
            print(f"\r{number} of {len(missing)} runs", end="", flush=True)
    print()
    return {job: done[key]["loss"] for job, (key, _) in wanted.items()}


def losses_of(variant: str, options: argparse.Namespace, found: dict[tuple[str, str, int], float]) -> np.ndarray:
    """Loss of the confirming proxies, shape (targets, seeds)."""
    return np.array([[found[variant, target, seed] for seed in range(options.seeds)] for target in options.targets])


def print_table(options: argparse.Namespace, found: dict[tuple[str, str, int], float]) -> None:
    """Markdown: loss minus that of the uniform mixture, seed by seed, and minus that of the default."""
    uniform, default = (losses_of(variant, options, found) for variant in (UNIFORM, DEFAULT))
    print(f"| variant | {' | '.join(options.targets)} | mean | against default | seeds and targets won |")
    print("|---" * (len(options.targets) + 4) + "|")
    for variant in options.variants:
        losses = losses_of(variant, options, found)
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
    parser.add_argument("--workers", type=int, default=num_cores())
    options = parser.parse_args()
    options.variants = list(dict.fromkeys([UNIFORM, DEFAULT, *options.variants]))
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    if options.from_uniform:
        recipe = varied(recipe, FROM_UNIFORM, seed=0)
    print_table(options, run_all(recipe, prepare(recipe), options))


if __name__ == "__main__":
    main()
