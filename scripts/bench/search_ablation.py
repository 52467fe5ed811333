"""What each choice of the search is worth: one search per variant, target and seed, its mixture confirmed by fresh proxies.

    python scripts/bench/search_ablation.py [--workdir DIR] [--seeds 3] [--from-uniform] [--targets all literary code qa]

Searches and proxies are kept in the workdir, so that a stopped call goes on and new variants cost only themselves. A mixture is scored
by the loss of fresh proxies on the half of the target that no search saw, with other seeds for every search. Variants are compared search
by search with the default and with uniform; intervals are 90% over searches. The targets are those that defaults are chosen on, no others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from corpus_recipe import FOUR_TARGETS, TUNED_TARGETS, add_corpus_arguments, corpus_of, corpus_recipe, prepare, with_target
from searched import confirm_all, search_all
from unit_tables import markdown, mean_cell

from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog
from pipelines.compare.methods import Method
from pipelines.compare.searches import stated_mixture
from train.search.plan import plan_search

UNIFORM, BIGRAM, DEFAULT = "uniform", "bigram alone", "default"
STATED = {UNIFORM: Method("uniform", "uniform"), BIGRAM: Method("prior", "prior")}
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


def losses_of_all(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Loss of every variant's searches, shape (targets, seeds): the mean over the proxies that confirm each."""
    runs = [
        (variant, target, seed) for seed in range(options.seeds) for variant in options.variants for target in options.targets
    ]
    plans = {run: plan_search(varied(with_target(recipe, run[1]), VARIANTS[run[0]], seed=run[2]), catalog) for run in runs}
    mixtures = {run: stated_mixture(STATED[run[0]], plan) for run, plan in plans.items() if run[0] in STATED}
    searching = {run: plan for run, plan in plans.items() if run not in mixtures}
    mixtures |= zip(searching, search_all(list(searching.values()), workers=options.workers), strict=True)
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
    add_corpus_arguments(parser, workdir=Path("bench-run"), token_budget=200_000, choices=TUNED_TARGETS, targets=FOUR_TARGETS)
    parser.add_argument("--seeds", type=int, default=3, help="searches of each variant and target")
    parser.add_argument("--confirmations", type=int, default=1, help="proxies that confirm each mixture")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument(
        "--from-uniform", action="store_true", help="measure variants of the search without a prior, from uniform"
    )
    options = parser.parse_args()
    options.variants = list(dict.fromkeys([UNIFORM, DEFAULT, *options.variants]))
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    if options.from_uniform:
        recipe = varied(recipe, FROM_UNIFORM, seed=0)
    print(table(losses_of_all(recipe, prepare(recipe), options), options.targets))


if __name__ == "__main__":
    main()
