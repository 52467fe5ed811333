"""How far the count's mixture depends on how much was counted, for passages and for single tokens.

    python scripts/bench/count_size.py [--corpus DIR] [--workdir DIR] [--targets all literary books code qa] [--samples 4]

Shares are means over samples of each source, of one where a million tokens are counted. A cell is the largest change of a share from
there, how many nats per token the mixture is above the best one for bigram models of all tokens, and the dictionary's share. Takes minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from corpus_recipe import TUNED_TARGETS, add_corpus_arguments, corpus_of, corpus_recipe, prepare, with_target
from scipy.special import logsumexp
from unit_tables import markdown

from train.mixture import count
from train.mixture.constraints import stated_constraints
from train.mixture.count import PASSAGE_TOKENS, Count, best_weights, count_passages
from train.search.plan import SearchPlan, plan_search

SIZES = (1 << 20, 1 << 17, 1 << 15, 1 << 13)
ALL_TOKENS = 1 << 23


def counted(plan: SearchPlan, *, passage_tokens: int, most_tokens: int, sample: int = 0) -> Count:
    """As a search counts, but for the longest passage, the largest sample of a source and which one it is."""
    count._MOST_TOKENS_OF_A_SOURCE, count._MOST_TOKENS = most_tokens, most_tokens * len(plan.catalog.sources)
    count._SAMPLE_STREAM = 41 + 1000 * sample
    return count_passages(plan.proxy, plan.target.weights(), passage_tokens=passage_tokens)


def loss(whole: Count, weights_K: np.ndarray) -> float:
    """Nats per loss token of the target under the mixture of the sources' models."""
    log_weights_K = np.log(np.maximum(weights_K, 1e-300))
    return -float(whole.importance_N @ logsumexp(whole.log_likelihoods_NK + log_weights_K, axis=1))


def row_of(plan: SearchPlan, target: str, *, passage_tokens: int, num_samples: int) -> list[str]:
    """A line of the table."""
    bounds = stated_constraints(plan.search.constraints, sources=plan.catalog.sources)
    dictionary, first_K = plan.catalog.sources.index("dictionary_en"), None
    whole = counted(plan, passage_tokens=passage_tokens, most_tokens=ALL_TOKENS)
    lowest = loss(whole, best_weights(whole, constraints=bounds))
    cells = [target, f"{passage_tokens}"]
    for size in SIZES:
        samples = range(num_samples if size < SIZES[0] else 1)
        counts = [counted(plan, passage_tokens=passage_tokens, most_tokens=size, sample=sample) for sample in samples]
        found_NK = np.array([best_weights(one, constraints=bounds) for one in counts])
        mean_K = found_NK.mean(axis=0)
        first_K = mean_K if first_K is None else first_K
        above = np.mean([loss(whole, weights_K) for weights_K in found_NK]) - lowest
        cells.append(f"{np.abs(mean_K - first_K).max():.3f}, {above:+.4f}, {mean_K[dictionary]:.2f}")
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser, workdir=Path("bench-run"), token_budget=600_000, choices=TUNED_TARGETS, targets=TUNED_TARGETS)
    parser.add_argument("--samples", type=int, default=4, help="of each source, where fewer than a million tokens are counted")
    options = parser.parse_args()
    recipe = corpus_recipe(corpus_of(options), options.workdir.absolute(), token_budget=options.token_budget)
    catalog = prepare(recipe)
    rows = [["target", "longest passage", *(f"{size >> 10}K" for size in SIZES)]]
    for target in options.targets:
        plan = plan_search(with_target(recipe, target), catalog)
        rows += [row_of(plan, target, passage_tokens=longest, num_samples=options.samples) for longest in (PASSAGE_TOKENS, 1)]
    print(markdown(rows))


if __name__ == "__main__":
    main()
