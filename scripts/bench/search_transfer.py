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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from corpus_recipe import PROXY, TARGETS, add_corpus_argument, corpus_of, corpus_recipe, prepare, with_target
from search_ablation import confirm, learned, varied

from fastmix_data.machine import num_cores
from fastmix_data.recipe.proxy import ProxySection
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog
from train.proxy.model import build_proxy
from train.proxy.training import ProxyPlan
from train.search.plan import SearchPlan, plan_search

MIXTURES = ("uniform", "proportional", "fastmix")
LARGE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 536,
}


def weights_of_search(plan: SearchPlan) -> list[float]:
    """What the small proxy finds."""
    weights: list[float] = learned(plan).weights_K(plan.catalog.sources).tolist()
    return weights


def losses_of_large(plan: SearchPlan, weights: list[float]) -> dict[str, float]:
    """Loss of a fresh large model on every target's parts."""
    names = list(plan.catalog.info.target_files) + [name for name in plan.catalog.sources if name != "junk"]
    seed = plan.proxy.training.seed + 100
    return confirm(large_proxy(plan.proxy), weights, seed=seed, names=names, num_sequences=plan.search.eval_sequences)


def large_proxy(small: ProxyPlan) -> ProxyPlan:
    """The large model with the same budget."""
    # The learning rate goes with the width's inverse (muP, arXiv 2203.03466).
    rate = small.training.learning_rate * PROXY["hidden_size"] / LARGE["hidden_size"]
    return replace(small, proxy=ProxySection(config=LARGE), training=small.training.model_copy(update={"learning_rate": rate}))


def num_parameters(plan: ProxyPlan) -> int:
    model = build_proxy(plan.proxy, config=plan.config, base=plan.base, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


def measure(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Losses by target and mixture, one per seed."""
    sizes_K = catalog.num_tokens_K() / catalog.num_tokens_K().sum()
    plain = {"uniform": [1 / len(sizes_K)] * len(sizes_K), "proportional": sizes_K.tolist()}
    losses: dict[tuple[str, str], list[float]] = {(t, m): [] for t in options.targets for m in MIXTURES}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for seed in range(options.seeds):
            plans = {t: plan_search(varied(with_target(recipe, t), {}, seed=seed), catalog) for t in options.targets}
            jobs = {**plain, **dict(zip(plans, pool.map(weights_of_search, plans.values()), strict=True))}
            first = next(iter(plans.values()))
            results = dict(zip(jobs, pool.map(losses_of_large, [first] * len(jobs), jobs.values()), strict=True))
            for target, mixture in losses:
                parts = results[target if mixture == "fastmix" else mixture]
                losses[target, mixture].append(sum(w * parts[name] for name, w in plans[target].target.weights().items()))
    return losses


def main() -> None:
    """Search, confirm and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_argument(parser)
    parser.add_argument("--workdir", type=Path, default=Path("bench-run"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["all", "literary", "code", "qa"])
    parser.add_argument("--token-budget", type=int, default=600_000)
    parser.add_argument("--workers", type=int, default=num_cores())
    options = parser.parse_args()
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    catalog = prepare(recipe)
    losses, small = measure(recipe, catalog, options), plan_search(recipe, catalog).proxy
    ratio = num_parameters(large_proxy(small)) / num_parameters(small)
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
