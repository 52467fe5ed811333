"""The search beside other methods on the benchmark corpus: `fastmix compare` for several targets that share one swarm.

    python scripts/bench/search_quality.py [--corpus DIR] [--workdir DIR] [--targets all literary books code qa] [--seeds 3]

Every proxy is kept in the workdir, so a stopped call goes on and another target or method costs only itself. Prints, for each method, the
mean paired difference to uniform on each target (nats, on the half that no search saw) with the share of the attainable gain, then the
mean rank over all targets and seeds, and its search tokens beside those of the largest RegMix. Markdown, for docs/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from corpus_recipe import TARGETS, add_corpus_argument, corpus_of, corpus_recipe, prepare, with_target

from fastmix_data.machine import Workers
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.comparison import REFERENCE, ComparedMethod
from fastmix_data.shards.catalog import Catalog
from fastmix_data.units import format_count
from pipelines.compare.run import compare
from pipelines.compare.table import mean_ranks
from pipelines.report.method_figures import mean_interval
from train.search.plan import plan_search

METHODS = "fastmix,uniform,proportional,prior,doge,doremi,regmix:32,olmix:32"
Compared = Mapping[str, ComparedMethod]  # by name of the method
Comparisons = dict[str, list[Compared]]  # by target, one for each seed of the search


def run_all(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> Comparisons:
    """Results of every target and seed of the search."""
    workers = Workers(num_workers=options.workers)
    results: Comparisons = {target: [] for target in options.targets}
    for seed in range(options.search_seeds):
        training = recipe.required("training").with_seed(seed)
        for target in options.targets:
            plan = plan_search(with_target(recipe.model_copy(update={"training": training}), target), catalog)
            print(f"target {target}, search seed {seed}", flush=True)
            folder = recipe.paths.compare.root / "targets" / f"{target}-{seed}"
            done = compare(
                plan, methods=options.methods, num_seeds=options.seeds, workers=workers, replace=True, directory=folder
            )
            results[target].append(done.comparison.methods)
    return results


def losses_of(results: Sequence[Compared], name: str) -> np.ndarray:
    """Losses of a method's confirming proxies on one target, over seeds of search and confirmation, shape (R,)."""
    return np.concatenate([methods[name].target_loss for methods in results])


def cell(results: Sequence[Compared], name: str) -> str:
    """Mean difference to uniform, its 90% interval over proxies, and the share of the attainable gain."""
    if name == REFERENCE:
        return f"{losses_of(results, name).mean():.3f}"
    differences_R = losses_of(results, name) - losses_of(results, REFERENCE)
    best = min(losses_of(results, other).mean() for other in results[0])
    attainable = losses_of(results, REFERENCE).mean() - best
    interval = mean_interval(differences_R.tolist())
    half = f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval is not None else ""
    share = f" ({-100 * differences_R.mean() / attainable:.0f}%)" if attainable > 0 else ""
    return f"{differences_R.mean():+.3f}{half}{share}"


def table(results: Comparisons) -> str:
    """Markdown: a row per method, best mean rank first."""
    first = next(iter(results.values()))[0]
    ranks = mean_ranks({name: np.concatenate([losses_of(found, name) for found in results.values()]).tolist() for name in first})
    tokens = {name: np.mean([methods[name].search_tokens for found in results.values() for methods in found]) for name in first}
    swarms = [tokens[name] for name in first if name.startswith("regmix")]
    rows = [["method", *results, "mean rank", "search tokens", "RegMix's tokens over these"]]
    for name in sorted(ranks, key=lambda name: (ranks[name], name)):
        ratio = f"{max(swarms) / tokens[name]:.1f}" if swarms and tokens[name] else ""
        count = format_count(float(tokens[name])) if tokens[name] else "0"
        rows.append([name, *(cell(found, name) for found in results.values()), f"{ranks[name]:.2f}", count, ratio])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_argument(parser)
    parser.add_argument("--workdir", type=Path, default=Path("/tmp/fastmix-quality"))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3, help="confirming proxies of each mixture")
    parser.add_argument("--search-seeds", type=int, default=1, help="searches and swarms, with seeds 0, 1 and so on")
    parser.add_argument("--token-budget", type=int, default=None, help="tokens of a proxy; default: that of corpus_recipe")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: one per core")
    options = parser.parse_args()
    budget = {} if options.token_budget is None else {"token_budget": options.token_budget}
    recipe = corpus_recipe(corpus_of(options), options.workdir.resolve(), **budget)
    print(table(run_all(recipe, prepare(recipe), options)))


if __name__ == "__main__":
    main()
