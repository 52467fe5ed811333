"""What the search costs beside plain training of the same proxy: same steps, same batches, same process, in alternating rounds.

    python scripts/bench/search.py [--sources 12 96] [--rounds 15]

Prints the median over rounds of the ratio search / plain, with its quartiles. A round is `update_interval` steps of each, so one
target gradient and one scored step fall into it. The last column is the cost of the way the ratio replaces: K + 1 separate backward passes
at each update (one for the target, one per source over its slice of the batch), measured in the same run as time per update in plain steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastmix_data.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.recipe import DeepspeedSection, ProxySection, SearchSection
from fastmix_data.shards import ShardLayout, encode_shard, write_shard
from train.engine import ProxyEngine, process_group
from train.losses import sequence_losses
from train.proxy import build_proxy, proxy_config
from train.proxy_run import ProxyRun
from train.target import Target

VOCABULARY, BLOCK = 8192, 2048
PROXY = {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 344}


def make_catalog(root: Path, num_sources: int) -> Catalog:
    """Sources of random tokens: what they say does not matter to the time."""
    layout, rng, rows = ShardLayout(BLOCK, np.dtype("<u2")), np.random.default_rng(0), []
    names = tuple(f"source{number:03d}" for number in range(num_sources))
    for name in names:
        for split, num_blocks in (("train", 50), ("valid", 4)):
            tokens = rng.integers(0, VOCABULARY, num_blocks * BLOCK + 1).astype(np.uint16)
            buffer = encode_shard(tokens, layout=layout, key_prefix=f"{name}-{split}-", num_blocks=num_blocks)
            path = f"shards/{name}/{split}.tar"
            shard = write_shard(root / path, buffer, layout=layout)
            count = num_blocks * BLOCK
            rows.append(
                ShardRow(name, split, path, num_blocks, count, count, count, 1, "<u2", False, shard.num_bytes, shard.sha256)
            )
    return Catalog(root, CatalogInfo(BLOCK, VOCABULARY, 0, "", sources=names), rows)


def make_run(catalog: Catalog, search: SearchSection) -> tuple[ProxyRun, ProxyEngine]:
    proxy = ProxySection(config=PROXY)
    config = proxy_config(proxy, resolve=Path, vocab_size=VOCABULARY, sequence_length=search.sequence_length)
    model = build_proxy(proxy, config=config, resolve=Path, seed=0)
    engine = ProxyEngine(model, search=search, deepspeed=DeepspeedSection(), micro_batch=search.global_batch)
    target = Target(
        catalog,
        weights={catalog.sources[0]: 0.5, catalog.sources[1]: 0.5},
        sequence_length=search.sequence_length,
        target_batch=search.target_batch,
        micro_batch=search.global_batch,
        seed=0,
    )
    return ProxyRun(catalog, search=search, engine=engine, target=target), engine


def seconds(work: Callable[[], object], times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - started


def separate_passes(engine: ProxyEngine, search: SearchSection, num_sources: int) -> None:
    """One update of the kind the reference code makes: K + 1 forward and backward passes, over the head's weight alone."""
    head = engine.module.get_output_embeddings().weight
    slice_size = max(1, search.global_batch // num_sources)
    tokens = torch.randint(0, VOCABULARY, (slice_size, search.sequence_length + 1))
    for _ in range(num_sources + 1):
        torch.autograd.grad(sequence_losses(engine.module(input_ids=tokens[:, :-1]).logits, tokens[:, 1:]).mean(), head)


def measure(num_sources: int, rounds: int) -> None:
    search = SearchSection(token_budget=10**9, weights_warmup_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        catalog = make_catalog(Path(folder), num_sources)
        run, engine = make_run(catalog, search)  # one proxy in both roles, so that nothing but the role differs
        interval, ratios, per_step, separate = search.update_interval, [], [], []
        for number in range(rounds + 1):
            pair = [(lambda: seconds(run.search_step, interval)), (lambda: seconds(run.plain_step, interval))]
            order = (0, 1) if number % 2 else (1, 0)
            times = {index: pair[index]() for index in order}
            if number:  # the first round warms up
                ratios.append(times[0] / times[1])
                per_step.append(times[1] / interval)
            if number % 5 == 1:
                separate.append(seconds(lambda: separate_passes(engine, search, num_sources)) / per_step[-1])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    tokens = search.global_batch * search.sequence_length / np.median(per_step)
    print(
        f"{num_sources:>4}  {tokens:>14,.0f}  {median:>14.3f}  [{low:.3f}, {high:.3f}]  {np.median(separate):>20.2f}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[12, 96])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("   K  plain tokens/s  search / plain  quartiles         K + 1 passes, steps per update")
    with process_group(rank=0, world_size=1):
        for num_sources in options.sources:
            measure(num_sources, options.rounds)


if __name__ == "__main__":
    main()
