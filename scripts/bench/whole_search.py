"""A whole search, with counting, scores, trials and what they measure, beside one plain proxy of as many tokens: seconds, in pairs.

python scripts/bench/whole_search.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from search_overhead import make_catalog, make_plan

from fastmix_data.workdir import SearchFolder
from train.proxy.engine import process_group
from train.proxy.training import train_on_mixture
from train.search.plan import SearchPlan
from train.search.search import search

NUM_SOURCES, NUM_TOKENS = 8, 1_000_000


def num_tokens_of(plan: SearchPlan) -> int:
    """That the proxies of a search train on."""
    return plan.main.training.num_tokens + plan.trial_steps * plan.proxy.training.tokens_per_step


def seconds_of_search(plan: SearchPlan) -> float:
    """From the start to its mixture."""
    shutil.rmtree(plan.folder.root, ignore_errors=True)
    started = time.perf_counter()
    search(plan, quiet=True)
    return time.perf_counter() - started


def seconds_of_proxy(plan: SearchPlan, num_tokens: int) -> float:
    """Of one proxy on the uniform mixture, set-up included."""
    proxy = plan.proxy.with_steps(num_tokens // plan.proxy.training.tokens_per_step)
    started = time.perf_counter()
    train_on_mixture(proxy, np.full(NUM_SOURCES, 1 / NUM_SOURCES), seed=0).engine.close()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    print("| tokens | search, s | one proxy, s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, process_group(rank=0, world_size=1):
        plan = make_plan(make_catalog(Path(folder), NUM_SOURCES), training={"token_budget": NUM_TOKENS})
        plan = replace(plan, folder=SearchFolder(Path(folder) / "search"))
        num_tokens = num_tokens_of(plan)
        seconds_of_proxy(plan, num_tokens // 20)  # loads everything
        for number in range(options.rounds):
            order = (lambda: seconds_of_search(plan), lambda: seconds_of_proxy(plan, num_tokens))
            taken = {which: order[which]() for which in ((0, 1) if number % 2 else (1, 0))}
            ratios.append(taken[0] / taken[1])
            print(f"| {num_tokens:,} | {taken[0]:.1f} | {taken[1]:.1f} | {ratios[-1]:.3f} |", flush=True)
    print(f"\nmedian {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
