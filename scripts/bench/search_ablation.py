"""What each choice of the search is worth: one search per variant, target and seed, its mixture confirmed by fresh proxies.

    python scripts/bench/search_ablation.py [--workdir DIR] [--seeds 3] [--targets all literary code qa]

Searches and proxies are kept in the workdir, so that a stopped call goes on and new variants cost only themselves. A mixture is scored
by the loss of fresh proxies on the half of the target that no search saw, with other seeds for every search. Variants are compared search
by search with the default and with uniform; intervals are 90% over searches. The targets are those that defaults are chosen on, no others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from corpus_recipe import (
    FOUR_TARGETS,
    TOKEN_BUDGET,
    TUNED_TARGETS,
    add_corpus_arguments,
    corpus_of,
    corpus_recipe,
    prepare,
    with_seed,
    with_target,
)
from searched import confirm_all, search_all
from unit_tables import markdown, mean_cell

from fastmix_data.recipe.recipe import PAPER, Recipe
from fastmix_data.shards.catalog import Catalog
from pipelines.compare.methods import Method
from pipelines.compare.searches import found_by_search, found_by_trials, stated_mixture
from train.search.plan import plan_search

UNIFORM, DEFAULT, TRIALS_ONLY = "uniform", "default", "trials only"
STATED = {name: Method(name, name) for name in (UNIFORM, "count", "mde")}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in STATED},
    DEFAULT: {},
    TRIALS_ONLY: {},  # the default's search without the mixture of its scores
    "scores only": {"trial_fraction": 0.0},
    "scores only, from uniform": {"trial_fraction": 0.0, "initial_weights": "uniform"},
    "from uniform": {"initial_weights": "uniform"},
    "target memory 0": {"target_memory": 0.0},
    "interval 8": {"update_interval": 8},
    "head": {"hypergradient": "head"},
    "paper": {"method": "paper", **PAPER},
}


def varied(recipe: Recipe, changes: dict[str, Any], *, seed: int) -> Recipe:
    """The recipe with other settings of the search, and a seed."""
    settings = recipe.search.model_validate({**recipe.search.model_dump(), **changes})
    return with_seed(recipe.model_copy(update={"search": settings}).located(recipe.base), seed)


def losses_of_all(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Loss of every variant's searches, shape (targets, seeds): the mean over the proxies that confirm each."""
    runs = [
        (variant, target, seed) for seed in range(options.seeds) for variant in options.variants for target in options.targets
    ]
    plans = {run: plan_search(varied(with_target(recipe, run[1]), VARIANTS[run[0]], seed=run[2]), catalog) for run in runs}
    mixtures = {run: stated_mixture(STATED[run[0]], plan) for run, plan in plans.items() if run[0] in STATED}
    searching = {run: plan for run, plan in plans.items() if run not in mixtures}
    searched = search_all(list(searching.values()), workers=options.workers)
    for (run, plan), mixture in zip(searching.items(), searched, strict=True):
        mixtures[run] = (found_by_trials if run[0] == TRIALS_ONLY else found_by_search)(mixture, plan)
    losses_U = confirm_all(
        list(plans.values()), [mixtures[run] for run in runs], num_seeds=options.confirmations, workers=options.workers
    )
    found = dict(zip(runs, losses_U.tolist(), strict=True))
    return {
        variant: np.array([[found[variant, target, seed] for seed in range(options.seeds)] for target in options.targets])
        for variant in options.variants
    }


def table(losses: dict[str, np.ndarray], targets: list[str]) -> str:
    """Loss minus that of uniform by target, and minus that of the default over all searches."""
    rows = [["variant", *targets, "mean", "against default", "searches won"]]
    for variant, losses_GS in losses.items():
        gains_GS, against_GS = losses_GS - losses[UNIFORM], losses_GS - losses[DEFAULT]
        won = f"{int((against_GS < 0).sum())} of {against_GS.size}" if variant != DEFAULT else ""
        cells = [*(f"{gain:+.3f}" for gain in gains_GS.mean(axis=1)), f"{gains_GS.mean():+.4f}"]
        rows.append([variant, *cells, mean_cell(against_GS.ravel()), won])
    return markdown(rows)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(
        parser, workdir=Path("bench-run"), token_budget=TOKEN_BUDGET, choices=TUNED_TARGETS, targets=FOUR_TARGETS
    )
    parser.add_argument("--seeds", type=int, default=3, help="searches of each variant and target")
    parser.add_argument("--confirmations", type=int, default=1, help="proxies that confirm each mixture")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    options = parser.parse_args()
    options.variants = list(dict.fromkeys([UNIFORM, DEFAULT, *options.variants]))
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    print(table(losses_of_all(recipe, prepare(recipe), options), options.targets))


if __name__ == "__main__":
    main()
