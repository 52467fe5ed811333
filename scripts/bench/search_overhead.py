"""What the search costs beside plain training of the same proxy: same steps, same batches, same process, in alternating rounds.

    python scripts/bench/search_overhead.py [--sources 8 32 128 512] [--rounds 15]

Prints the median over rounds of the ratio search / plain, with its quartiles. A round is `update_interval` steps of each, so one
target gradient and one scored step fall into it. Beside it, measured in the same run, what the ratio would be with the way it replaces,
K + 1 separate forward and backward passes at each update, one for the target and one for each source over its slice of the batch:
in all parameters, which gives the same scores, and in the head's weight alone, as the paper's code has it. Last, what comes once
before the first step: counting in all sources, in seconds. Trials are no part of it: they are plain training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmix_data.recipe.load import parse_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, write_shard
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.losses import ModelInputs
from train.search.plan import SearchPlan, plan_search
from train.search.search import build_run
from train.search.start import counted_start

VOCABULARY, BLOCK = 8192, 2048
PROXY = {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 344}


def make_catalog(root: Path, num_sources: int) -> Catalog:
    """Sources of random tokens: what they say does not matter to the time."""
    layout, rng, rows = ShardLayout(BLOCK, np.dtype("<u2")), np.random.default_rng(0), []
    names = tuple(f"source{number:03d}" for number in range(num_sources))
    for name in names:
        for split, num_blocks in (("train", 25), ("valid", 4)):
            tokens = rng.integers(0, VOCABULARY, num_blocks * BLOCK + 1).astype(np.uint16)
            buffer = encode_shard(tokens, layout=layout, key_prefix=f"{name}-{split}-", num_blocks=num_blocks)
            path = f"shards/{name}/{split}.tar"
            shard = write_shard(root / path, buffer, layout=layout)
            count = num_blocks * BLOCK
            rows.append(
                ShardRow(name, split, path, num_blocks, count, count, count, 1, "<u2", False, shard.num_bytes, shard.sha256)
            )
    return Catalog(root, CatalogInfo(BLOCK, VOCABULARY, 0, "", sources=names), rows)


def make_plan(
    catalog: Catalog,
    *,
    proxy: dict[str, Any] = PROXY,
    training: dict[str, Any] | None = None,
    search: dict[str, Any] | None = None,
) -> SearchPlan:
    """The default search on a catalog of random tokens, but for the keys given."""
    content = {
        "workdir": str(catalog.root),
        "tokenizer": {"bytes": True},
        "sources": {name: {"files": "none"} for name in catalog.sources},
        "target": {"sources": dict.fromkeys(catalog.sources[:2], 1.0)},
        "proxy": {"config": proxy},
        "training": {"token_budget": 10**9, **(training or {})},
        "search": search or {},
    }
    return plan_search(parse_recipe(content, name="benchmark"), catalog)


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """How long it takes to the end of what it gives a GPU to do."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def paired_times(
    first: Callable[[], object], second: Callable[[], object], *, times: int, rounds: int
) -> Iterator[tuple[float, float]]:
    """Seconds of both in each round, which go first in turn; a round before them warms up."""
    pair = (first, second)
    for number in range(rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        taken = {index: seconds(pair[index], times) for index in order}
        if number:
            yield taken[0], taken[1]


def separate_passes(engine: ProxyEngine, plan: SearchPlan, parameters: list[nn.Parameter]) -> None:
    """One update of the kind this replaces: K + 1 forward and backward passes, the target's and every source's."""
    training, num_sources = plan.proxy.training, len(plan.catalog.sources)
    sizes = [plan.search.target_batch, *([max(1, training.global_batch // num_sources)] * num_sources)]
    for size in sizes:
        tokens = torch.randint(0, VOCABULARY, (size, training.sequence_length + 1), device=engine.device)
        torch.autograd.grad(engine.bare_sequence_losses(ModelInputs(tokens[:, :-1]), tokens[:, 1:]).mean(), parameters)


def measure(num_sources: int, rounds: int) -> None:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(make_catalog(Path(folder), num_sources))
        interval, start = plan.search.update_interval, counted_start(plan)
        run, engine, _ = build_run(plan, 1, start=start)  # one proxy in both roles: nothing but the role differs
        everything, head = list(engine.module.parameters()), [engine.module.get_output_embeddings().weight]
        ratios, per_step, separate = [], [], []
        for number, (searching, plain) in enumerate(paired_times(run.search_step, run.plain_step, times=interval, rounds=rounds)):
            ratios.append(searching / plain)
            per_step.append(plain / interval)
            if number % 5 == 0:
                passes = [seconds(lambda p=p: separate_passes(engine, plan, p)) for p in (everything, head)]
                separate.append([1 + taken / plain for taken in passes])
        engine.close()
    low, median, high = np.percentile(ratios, [25, 50, 75])
    tokens = plan.proxy.training.tokens_per_step / np.median(per_step)
    of_all, of_head = np.median(separate, axis=0)
    print(
        f"| {num_sources} | {tokens:,.0f} | {median:.3f} | {low:.3f} to {high:.3f} | {of_all:.2f} | {of_head:.2f} | "
        f"{start.seconds:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("| K | plain tokens/s | search / plain | quartiles | K + 1 passes / plain | K + 1 passes, head / plain | counting, s |")
    print("|---" * 7 + "|")
    with process_group(rank=0, world_size=1):
        for num_sources in options.sources:
            measure(num_sources, options.rounds)


if __name__ == "__main__":
    main()
