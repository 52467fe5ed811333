"""How far the count's mixture depends on how much was counted, with and without the limit on the run that it is the best for.

    python scripts/bench/count_size.py [--corpus DIR] [--workdir DIR] [--targets all literary books code qa] [--samples 4]

Shares are means over samples of each source, of one where a million tokens are counted. A cell is the largest change of a share from
there, how many nats the mixture is above the optimum for a bigram model of all tokens, and the dictionary's share. Takes a minute.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from corpus_recipe import TUNED_TARGETS, add_corpus_arguments, corpus_of, corpus_recipe, prepare, with_target
from unit_tables import markdown

from train.mixture import bigram
from train.mixture.bigram import BigramCounts, best_weights, count_bigrams, loss_and_gradient
from train.mixture.constraints import stated_constraints
from train.search.plan import SearchPlan, plan_search

SIZES = (1 << 20, 1 << 17, 1 << 15, 1 << 13)
ALL_TOKENS, UNLIMITED = 1 << 23, 1 << 40


def counted(plan: SearchPlan, *, most_tokens: int, sample: int = 0) -> BigramCounts:
    """As a search counts, but for the largest sample of a source and which one it is."""
    bigram._MOST_TOKENS_OF_A_SOURCE, bigram._SAMPLE_STREAM = most_tokens, 41 + 1000 * sample
    return count_bigrams(plan.proxy, plan.target.weights())


def rows_of(plan: SearchPlan, target: str, *, num_samples: int) -> list[list[str]]:
    """One line with the limit and one without."""
    num_tokens, dictionary = plan.proxy.training.token_budget, plan.catalog.sources.index("dictionary_en")
    bounds = stated_constraints(plan.search.constraints, sources=plan.catalog.sources)
    whole = replace(counted(plan, most_tokens=ALL_TOKENS), num_counted=UNLIMITED)

    def loss(weights_K: np.ndarray) -> float:
        return loss_and_gradient(whole, weights_K, num_tokens=num_tokens)[0]

    lowest = loss(best_weights(whole, num_tokens=num_tokens, constraints=bounds))
    samples = {
        size: [counted(plan, most_tokens=size, sample=n) for n in range(num_samples if size < SIZES[0] else 1)] for size in SIZES
    }
    rows = []
    for limit in (False, True):
        cells, first_K = [target, "a quarter of what was counted" if limit else "none"], None
        for counts in samples.values():
            used = counts if limit else [replace(one, num_counted=UNLIMITED) for one in counts]
            found_NK = np.array([best_weights(one, num_tokens=num_tokens, constraints=bounds) for one in used])
            mean_K = found_NK.mean(axis=0)
            first_K = mean_K if first_K is None else first_K
            above = np.mean([loss(weights_K) for weights_K in found_NK]) - lowest
            cells.append(f"{np.abs(mean_K - first_K).max():.3f}, {above:+.4f}, {mean_K[dictionary]:.2f}")
        rows.append(cells)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser, workdir=Path("bench-run"), token_budget=600_000, choices=TUNED_TARGETS, targets=TUNED_TARGETS)
    parser.add_argument("--samples", type=int, default=4, help="of each source, where fewer than a million tokens are counted")
    options = parser.parse_args()
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    catalog = prepare(recipe)
    rows = [["target", "limit", *(f"{size >> 10}K" for size in SIZES)]]
    for target in options.targets:
        rows += rows_of(plan_search(with_target(recipe, target), catalog), target, num_samples=options.samples)
    print(markdown(rows))


if __name__ == "__main__":
    main()
