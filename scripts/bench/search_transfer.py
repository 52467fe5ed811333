"""Whether a mixture found with a small proxy is still the better one for a model eight times as large.

    python scripts/bench/search_transfer.py [--workdir DIR] [--seeds 2] [--targets all literary code qa] [--token-budget N]

One search per target and seed with the small proxy; fresh large models then train on its mixture, on uniform and on proportional,
with the same budget and seed, and are scored on the half of the target that no search saw. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from corpus_recipe import (
    FOUR_TARGETS,
    TARGETS,
    TOKEN_BUDGET,
    add_corpus_arguments,
    corpus_of,
    corpus_recipe,
    prepare,
    with_proxy,
    with_target,
)
from searched import confirm_all, search_all
from unit_tables import markdown, mean_cell

from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog
from pipelines.compare.methods import Method
from pipelines.compare.searches import found_by_search, stated_mixture
from train.proxy.training import ProxyPlan
from train.search.plan import SearchPlan, plan_search

STATED = ("uniform", "proportional")
LARGE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 536,
}


def num_parameters(plan: ProxyPlan) -> int:
    """Parameters of the model."""
    return sum(parameter.numel() for parameter in plan.build_model(seed=0).parameters())


def differences(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> dict[tuple[str, str], np.ndarray]:
    """Loss of the large model by target and mixture, one for each seed of the search, shape (S,)."""
    pairs = [(target, seed) for target in options.targets for seed in range(options.seeds)]

    def plans(of: Recipe) -> list[SearchPlan]:
        training = of.required("training")
        seeded = [of.model_copy(update={"training": training.with_seed(seed)}).located(of.base) for _, seed in pairs]
        return [plan_search(with_target(one, target), catalog) for one, (target, _) in zip(seeded, pairs, strict=True)]

    small, large = plans(recipe), plans(with_proxy(recipe, LARGE))
    mixtures = {name: [stated_mixture(Method(name, name), plan) for plan in small] for name in STATED}
    searched = search_all(small, workers=options.workers)
    mixtures["fastmix"] = [found_by_search(mixture, plan) for mixture, plan in zip(searched, small, strict=True)]
    losses: dict[tuple[str, str], np.ndarray] = {}
    for name, found in mixtures.items():
        losses_U = confirm_all(large, found, num_seeds=1, workers=options.workers)
        losses |= {(target, name): losses_U[[pair[0] == target for pair in pairs]] for target in options.targets}
    return losses


def main() -> None:
    """Search, confirm and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser, workdir=Path("bench-run"), token_budget=TOKEN_BUDGET, choices=TARGETS, targets=FOUR_TARGETS)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    catalog = prepare(recipe)
    losses = differences(recipe, catalog, options)
    small, large = (plan_search(one, catalog).proxy for one in (recipe, with_proxy(recipe, LARGE)))
    print(f"{num_parameters(large) / num_parameters(small):.1f} times the proxy's parameters, {options.seeds} search(es)")
    print("loss of uniform in nats; of the others the paired difference to it, mean and 90% interval over searches\n")
    rows = [["target", "uniform", "proportional", "fastmix"]]
    for target in options.targets:
        uniform_S = losses[target, "uniform"]
        others = [mean_cell(losses[target, name] - uniform_S) for name in rows[0][2:]]
        rows.append([target, f"{uniform_S.mean():.3f}", *others])
    print(markdown(rows))


if __name__ == "__main__":
    main()
