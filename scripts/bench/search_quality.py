"""The search beside other methods on the benchmark corpus: `fastmix compare` for several targets that share one swarm.

    python scripts/bench/search_quality.py [--corpus DIR] [--workdir DIR] [--targets all literary german] [--search-seeds 5] [--seeds 4]

Every proxy is kept in the workdir, so a stopped call goes on and another target or method costs only itself. Targets that the search's
defaults were chosen on and targets that nobody looked at meanwhile have tables of their own. The unit is the search or swarm: its loss
is the mean over proxies that confirm it, on the half of the target that no search saw, with other seeds for every search and the same
ones for every method. Each cell is a mean paired difference in nats with its 90% interval over units: to uniform, with the share of the
attainable gain; to the search's own count; to RegMix. Markdown, for docs/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from corpus_recipe import (
    REPORTED_TARGETS,
    TARGETS,
    TOKEN_BUDGET,
    TUNED_TARGETS,
    add_corpus_arguments,
    corpus_of,
    corpus_recipe,
    prepare,
    scaled_proxy,
    with_proxy,
    with_seed,
    with_target,
)
from unit_tables import markdown, mean_cell, side_of_zero

from fastmix_data.machine import Workers
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.comparison import REFERENCE, ComparedMethod
from fastmix_data.shards.catalog import Catalog
from fastmix_data.units import format_count
from pipelines.compare.methods import Method
from pipelines.compare.run import compare
from pipelines.compare.searches import stated_mixture
from pipelines.compare.table import mean_ranks
from train.search.plan import SearchPlan, plan_search

METHODS = "fastmix,trials,count,mde,paper,mixmin,doge,doremi,additive:32,regmix:32,regmix-count:32,olmix:32,proportional,uniform"
COUNT = "count"
KINDS = {
    "Targets that the defaults were chosen on": TUNED_TARGETS,
    "Targets that nobody looked at while choosing": REPORTED_TARGETS,
}
Compared = Mapping[str, ComparedMethod]  # by name of the method
# By name of the method: a loss for each search, the mean over the proxies that confirm it, shape (U,).
Units = dict[str, np.ndarray]


PlanOf = Callable[[str, int], SearchPlan]  # by target and seed of the search


def compare_all(plan_of: PlanOf, root: Path, options: argparse.Namespace) -> dict[str, list[Compared]]:
    """Results of every target: one for each seed of the search. All seeds share what is kept in the workdir.

    Args:
        root: folder that each result gets a folder in.
    """
    results: dict[str, list[Compared]] = {target: [] for target in options.targets}
    for seed in range(options.search_seeds):
        for target in options.targets:
            plan = plan_of(target, seed)
            print(f"target {target}, search seed {seed}{bounds_of(plan)}", flush=True)
            done = compare(
                plan,
                methods=options.methods,
                num_seeds=options.seeds,
                workers=Workers(num_workers=options.workers),
                replace=True,
                directory=root / f"{target.replace(', ', '-').replace(' ', '-')}-{seed}-{plan.recipe_hash[:8]}",
            )
            results[target].append(done.comparison.methods)
    return results


def bounds_of(plan: SearchPlan) -> str:
    """The ceilings of a plan, for the line that says what is compared."""
    ceiling = plan.search.constraints.ceiling
    return f", at most {ceiling}" if ceiling else ""


def quality_plans(recipe: Recipe, catalog: Catalog, *, caps: bool) -> PlanOf:
    """Plans of the benchmark's targets."""

    def plan_of(target: str, seed: int) -> SearchPlan:
        wanted = with_target(with_seed(recipe, seed), target)
        return plan_search(with_cap(wanted, catalog) if caps else wanted, catalog)

    return plan_of


def with_cap(recipe: Recipe, catalog: Catalog) -> Recipe:
    """The recipe with a ceiling for the source that the target's count gives most to, at half of that share."""
    counted = stated_mixture(Method(COUNT, COUNT), plan_search(recipe, catalog)).weights
    best = int(np.argmax(counted))
    constraints = recipe.search.constraints.model_copy(update={"ceiling": {catalog.sources[best]: round(counted[best] / 2, 3)}})
    search = recipe.search.model_copy(update={"constraints": constraints})
    return recipe.model_copy(update={"search": search}).located(recipe.base)


def units_of(results: Sequence[Compared]) -> Units:
    """The losses on one target."""
    return {name: np.array([np.mean(methods[name].target_loss) for methods in results]) for name in results[0]}


def ranks_of(units: Sequence[Units]) -> dict[str, float]:
    """Mean rank of each method over the searches of several targets."""
    return mean_ranks({name: np.concatenate([one[name] for one in units]).tolist() for name in units[0]})


def gain_cell(units: Units, name: str) -> str:
    """Mean difference to uniform, its interval, and the share of the attainable gain."""
    reference_U = units[REFERENCE]
    if name == REFERENCE:
        return f"{reference_U.mean():.3f}"
    attainable = reference_U.mean() - min(losses_U.mean() for losses_U in units.values())
    gained = reference_U.mean() - units[name].mean()
    return mean_cell(units[name] - reference_U) + (f" ({100 * gained / attainable:.0f}%)" if attainable > 0 else "")


def gain_table(units: Mapping[str, Units]) -> str:
    """A row per method, best mean rank first, beside uniform."""
    ranks = ranks_of(list(units.values()))
    rows = [[name, *(gain_cell(one, name) for one in units.values()), f"{rank:.2f}"] for name, rank in by_value(ranks)]
    return markdown([["method", *units, "mean rank"], *rows])


def against_table(units: Mapping[str, Units], reference: str) -> str:
    """A row per method beside another one; the mean is over targets, and its interval too: over other targets like these.

    The last column counts targets on which the interval over searches leaves 0 out: below it, above it.
    """
    rows = []
    for name, _ in by_value(ranks_of(list(units.values()))):
        if name != reference:
            differences_GU = np.array([one[name] - one[reference] for one in units.values()])
            sides = [side_of_zero(differences_U) for differences_U in differences_GU]
            cells = [mean_cell(differences_U) for differences_U in (*differences_GU, differences_GU.mean(axis=1))]
            rows.append([name, *cells, f"{sides.count(-1)}, {sides.count(1)}"])
    return markdown([[f"less {reference}", *units, "mean", "targets ahead, behind"], *rows])


def rank_table(units: Mapping[str, Units], results: Mapping[str, Sequence[Compared]]) -> str:
    """Mean rank over the searches of each kind of target and of all, and what a search costs."""
    kinds = {title: [units[target] for target in targets if target in units] for title, targets in KINDS.items()}
    columns = {title: ranks_of(found) for title, found in kinds.items() if found} | {"all": ranks_of(list(units.values()))}

    def mean_cost(of: Callable[[ComparedMethod], float], name: str) -> float:
        return float(np.mean([of(methods[name]) for found in results.values() for methods in found]))

    swarm = largest_regmix(columns["all"])
    tokens = {name: mean_cost(lambda method: method.search_tokens, name) for name in columns["all"]}
    rows = [["method", *(f"mean rank: {title.lower()}" for title in columns), "search tokens", "RegMix's over these", "seconds"]]
    for name, _ in by_value(columns["all"]):
        ratio = f"{tokens[swarm] / tokens[name]:.1f}" if swarm is not None and tokens[name] else ""
        count = format_count(tokens[name]) if tokens[name] else "0"
        seconds = f"{mean_cost(lambda method: method.search_seconds, name):.0f}"
        rows.append([name, *(f"{ranks[name]:.2f}" for ranks in columns.values()), count, ratio, seconds])
    return markdown(rows)


def largest_regmix(names: Iterable[str]) -> str | None:
    """The RegMix with most proxies, drawn as in the paper."""
    sizes = {name: int(name.partition(":")[2]) for name in names if name.startswith("regmix:")}
    return max(sizes, key=lambda name: sizes[name], default=None)


def by_value(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Names and values, smallest first."""
    return sorted(values.items(), key=lambda item: (item[1], item[0]))


def report(results: Mapping[str, Sequence[Compared]]) -> str:
    """All tables."""
    units = {target: units_of(found) for target, found in results.items()}
    parts = []
    for title, targets in KINDS.items():
        these = {target: units[target] for target in targets if target in units}
        if these:
            names = next(iter(these.values()))
            compared = [name for name in (COUNT, largest_regmix(names)) if name in names]
            parts += [f"## {title}", gain_table(these), *(against_table(these, name) for name in compared)]
    return "\n\n".join([*parts, "## Mean ranks and costs", rank_table(units, results)])


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workdir = Path("/tmp/fastmix-quality")
    add_corpus_arguments(parser, workdir=workdir, token_budget=TOKEN_BUDGET, choices=TARGETS, targets=TARGETS)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3, help="confirming proxies of each mixture")
    parser.add_argument("--search-seeds", type=int, default=1, help="searches and swarms, with seeds 0, 1 and so on")
    parser.add_argument(
        "--proxy-scale", type=float, default=1.0, help="proxies of about so many times the parameters, all of them"
    )
    parser.add_argument(
        "--caps", action="store_true", help="bound the source that helps each target most, at half its share in the count"
    )
    options = parser.parse_args()
    recipe = corpus_recipe(corpus_of(options), options.workdir.resolve(), token_budget=options.token_budget)
    recipe = with_proxy(recipe, scaled_proxy(options.proxy_scale))
    catalog = prepare(recipe)
    plan_of = quality_plans(recipe, catalog, caps=options.caps)
    print(report(compare_all(plan_of, recipe.paths.compare.root / "targets", options)))


if __name__ == "__main__":
    main()
