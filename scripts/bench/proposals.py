"""What trials turned down: every mixture that a search proposed, confirmed by fresh proxies beside the one that it answers.

    python scripts/bench/proposals.py [--corpus DIR] [--workdir DIR] [--targets all literary german] [--search-seeds 1] [--seeds 1]

In the workdir of search_quality.py the searches are there already, and most proxies. A row per target and proposal: how far trials saw it
from the start, at their length; how likely they thought it the best; and how far it is at the search's own length, on the half of the
target that no search saw. Below 0 the proposal is better than the start. Markdown, for docs/results.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from corpus_recipe import TARGETS, TOKEN_BUDGET, add_corpus_arguments, corpus_of, corpus_recipe, prepare
from search_quality import quality_plans
from searched import confirm_all, search_all
from unit_tables import markdown

from fastmix_data.results.mixture import Mixture
from pipelines.compare.searches import FoundMixture
from train.baselines.cost import SearchCost
from train.search.plan import SearchPlan
from train.search.proposals import START


def rows_of(name: str, plan: SearchPlan, mixture: Mixture, options: argparse.Namespace) -> list[list[str]]:
    """A row for each proposal of a search but the start."""
    trials = mixture.trials
    assert trials is not None
    weights = [tuple(shares[source] for source in plan.catalog.sources) for shares in trials.mixtures.values()]
    found = [FoundMixture(of_sources, SearchCost()) for of_sources in weights]
    losses = confirm_all([plan] * len(found), found, num_seeds=options.seeds, workers=options.workers)
    confirmed = dict(zip(trials.mixtures, losses.tolist(), strict=True))
    rows = []
    for proposal, by_round in trials.losses.items():
        if proposal != START:
            seen = float(np.mean([loss - trials.losses[START][number] for number, loss in by_round.items()]))
            cells = [f"{seen:+.3f}", f"{trials.probability[proposal]:.2f}", f"{confirmed[proposal] - confirmed[START]:+.3f}"]
            rows.append([name, proposal, *cells, "yes" if trials.winner == proposal else ""])
    return rows


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workdir = Path("/tmp/fastmix-quality")
    add_corpus_arguments(parser, workdir=workdir, token_budget=TOKEN_BUDGET, choices=TARGETS, targets=TARGETS)
    parser.add_argument("--seeds", type=int, default=1, help="confirming proxies of each mixture")
    parser.add_argument("--search-seeds", type=int, default=1, help="searches, with seeds 0, 1 and so on")
    options = parser.parse_args()
    recipe = corpus_recipe(corpus_of(options), options.workdir.resolve(), token_budget=options.token_budget)
    plan_of = quality_plans(recipe, prepare(recipe), caps=False)
    plans = {(name, seed): plan_of(name, seed) for seed in range(options.search_seeds) for name in options.targets}
    found = search_all(list(plans.values()), workers=options.workers)
    rows = [["target", "proposal", "trials saw", "likely the best", "confirmed", "answer"]]
    for (name, _), plan, mixture in zip(plans, plans.values(), found, strict=True):
        rows += rows_of(name, plan, mixture, options)
    print(markdown(rows))


if __name__ == "__main__":
    main()
