"""Whether a mixture found with a small proxy is still the better one for a model eight times as large.

    python scripts/bench/search_transfer.py [--workdir DIR] [--seeds 2] [--targets all literary code qa] [--token-budget N]

One search per target and seed with the small proxy; fresh large models then train on its mixture, on uniform and on proportional,
with the same budget and seed, and are scored on the half of the target that no search saw. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from corpus_recipe import PROXY, TARGETS, add_corpus_argument, corpus_of, corpus_recipe, prepare, with_target
from search_ablation import learned, varied

from fastmix_data.recipe.proxy import ProxySection
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import load_catalog

MIXTURES = ("uniform", "proportional", "fastmix")
LARGE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 536,
}


def search(recipe: Recipe) -> tuple[list[float], int]:
    """Weights that the small proxy finds, and its number of parameters."""
    found = learned(recipe)
    return found.weights_K(load_catalog(recipe.paths.catalog).sources).tolist(), found.num_parameters


def confirm(recipe: Recipe, weights: list[float]) -> tuple[dict[str, float], int]:
    """Loss of a fresh large model on every target's parts, and its number of parameters."""
    from train.proxy.engine import process_group
    from train.proxy.training import target_losses, train_on_mixture

    catalog = load_catalog(recipe.paths.catalog)
    narrower = (
        PROXY["hidden_size"] / LARGE["hidden_size"]
    )  # the learning rate goes with the width's inverse (muP, arXiv 2203.03466)
    settings = recipe.search.model_copy(update={"learning_rate": recipe.search.learning_rate * narrower})
    large = recipe.model_copy(update={"proxy": ProxySection(config=LARGE), "search": settings}).located(recipe.base)
    with process_group(rank=0, world_size=1):
        proxy = train_on_mixture(large, catalog, np.array(weights), seed=recipe.search.seed + 100)
        names = list(catalog.info.target_files) + [name for name in catalog.sources if name != "junk"]
        return target_losses(proxy.engine, large, catalog, names=names, half="unseen"), proxy.engine.num_parameters


def measure(recipe: Recipe, options: argparse.Namespace) -> tuple[dict[tuple[str, str], list[float]], float]:
    """Losses by target and mixture, one per seed, and how many times as large the large model is."""
    catalog = load_catalog(recipe.paths.catalog)
    sizes_K = catalog.num_tokens_K() / catalog.num_tokens_K().sum()
    plain = {"uniform": [1 / len(sizes_K)] * len(sizes_K), "proportional": sizes_K.tolist()}
    losses: dict[tuple[str, str], list[float]] = {(t, m): [] for t in options.targets for m in MIXTURES}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for seed in range(options.seeds):
            recipes = {target: varied(with_target(recipe, target), {}, seed=seed) for target in options.targets}
            found = dict(zip(recipes, pool.map(search, recipes.values()), strict=True))
            jobs: dict[str, Any] = {**plain, **{target: weights for target, (weights, _) in found.items()}}
            first = next(iter(recipes.values()))
            results = dict(zip(jobs, pool.map(confirm, [first] * len(jobs), jobs.values()), strict=True))
            for target, mixture in losses:
                parts, _ = results[target if mixture == "fastmix" else mixture]
                losses[target, mixture].append(sum(w * parts[name] for name, w in recipes[target].target.weights().items()))
    return losses, results["uniform"][1] / found[options.targets[0]][1]


def main() -> None:
    """Search, confirm and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_argument(parser)
    parser.add_argument("--workdir", type=Path, default=Path("bench-run"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["all", "literary", "code", "qa"])
    parser.add_argument("--token-budget", type=int, default=600_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    prepare(recipe)
    losses, ratio = measure(recipe, options)
    print(f"{ratio:.1f} times the proxy's parameters, {options.seeds} seed(s)")
    print("loss of uniform in nats; of the others the paired difference to it, mean and range over seeds\n")
    print(f"| target | {' | '.join(MIXTURES)} |\n" + "|---" * (len(MIXTURES) + 1) + "|")
    for target in options.targets:
        uniform = np.array(losses[target, MIXTURES[0]])
        cells = [f"{uniform.mean():.3f}"]
        for mixture in MIXTURES[1:]:
            differences = np.array(losses[target, mixture]) - uniform
            cells.append(f"{differences.mean():+.3f} ({differences.min():+.3f} to {differences.max():+.3f})")
        print(f"| {target} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
