"""Each defect of the method's reference code, and the test that ours does not have it.

Some are shown here; for the rest the table names the test that does, and this file checks that it exists.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.search import SearchSection
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.strided import ShardLayout, encode_shard, write_shard

TESTS = Path(__file__).parent
SHOWN_ELSEWHERE = {
    "1 gradients are lost within an accumulation window": ("train/test_engine.py", "test_any_micro_batch_gives_the_same_step"),
    "3 sources are absent from the probed batch": (
        "fastmix_data/test_sampler.py",
        "test_realised_counts_stay_within_two_sequences",
    ),
    "4 an absent source scores 0": ("train/test_mixture_optimizer.py", "test_an_absent_source_keeps_its_estimate"),
    "5 the loss is divided by a micro-batch's weights": ("train/test_losses.py", "test_expected_training_gradient_is_the_same"),
    "6 nothing ends the run": ("train/test_search.py", "test_a_search_ends_with_its_budget"),
    "7 ranks multiply local shards": ("train/test_engine.py", "test_scores_and_step_equal_plain_pytorch"),
    "8 the entropy term sharpens": ("train/test_mixture_optimizer.py", "test_a_positive_prior_strength_flattens"),
    "10 initial weights count twice": ("train/test_losses.py", "test_nonuniform_initial_weights_do_not_count_twice"),
    "11 tails are lost": ("pipelines/test_preprocess.py", "test_every_document_can_be_joined_again"),
}


@pytest.mark.parametrize("defect", SHOWN_ELSEWHERE)
def test_the_defect_has_its_test(defect: str) -> None:
    path, name = SHOWN_ELSEWHERE[defect]
    assert re.search(rf"^def {name}", (TESTS / path).read_text(encoding="utf-8"), re.MULTILINE)


def write_catalog(root: Path, num_sources: int) -> Catalog:
    layout, rng, rows = ShardLayout(32, np.dtype("<u2")), np.random.default_rng(0), []
    names = tuple(f"s{number}" for number in range(num_sources))
    for name in names:
        for split, num_blocks in (("train", 4), ("valid", 8)):
            tokens = rng.integers(0, 32, num_blocks * 32 + 1).astype(np.uint16)
            path = f"{name}-{split}.tar"
            buffer = encode_shard(tokens, layout=layout, key_prefix=f"{name}-{split}-", num_blocks=num_blocks)
            shard = write_shard(root / path, buffer, layout=layout)
            count = num_blocks * 32
            rows.append(
                ShardRow(name, split, path, num_blocks, count, count, count, 1, "<u2", False, shard.num_bytes, shard.sha256)
            )
    return Catalog(root, CatalogInfo(32, 32, 0, "", sources=names), rows)


COUNT_PASSES = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_reference_defects import count_passes, target_sequences
from train.proxy.engine import process_group
with process_group(rank=0, world_size=1):
    folder = Path(sys.argv[2])
    passes = [count_passes(folder / str(k), k) for k in (2, 64)]
    print(json.dumps({"passes": passes, "seen": target_sequences(folder / "target")}))
"""


def make_run(root: Path, num_sources: int) -> Any:
    from fastmix_data.recipe.proxy import ProxySection
    from train.proxy.engine import ProxyEngine
    from train.proxy.model import build_proxy, proxy_config
    from train.search.proxy_run import ProxyRun
    from train.target.target import Target

    torch.set_num_threads(1)
    root.mkdir(parents=True)
    catalog = write_catalog(root, num_sources)
    search = SearchSection(
        token_budget=10**6, sequence_length=16, global_batch=8, target_batch=4, update_interval=1, weights_warmup_steps=0
    )
    small = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    proxy = ProxySection(config=small)
    config = proxy_config(proxy, resolve=Path, vocab_size=32, sequence_length=16)
    engine = ProxyEngine(
        build_proxy(proxy, config=config, resolve=Path, seed=0), search=search, deepspeed=DeepspeedSection(), micro_batch=8
    )
    weights = {catalog.sources[0]: 0.5, catalog.sources[1]: 0.5}
    target = Target(catalog, weights=weights, sequence_length=16, target_batch=4, micro_batch=8, seed=0)
    uniform_K = np.full(num_sources, 1 / num_sources)
    run = ProxyRun(catalog, search=search, engine=engine, target=target, initial_K=uniform_K, prior_K=uniform_K)
    return run, engine, target


def count_passes(root: Path, num_sources: int) -> int:
    """Forward passes of one scored step."""
    run, engine, _ = make_run(root, num_sources)
    passes = []
    engine.module.register_forward_hook(lambda *_: passes.append(1))
    run.search_step()
    return len(passes)


def target_sequences(root: Path) -> list[list[int]]:
    """Sequences of successive target batches, as (source, number) pairs."""
    _, _, target = make_run(root, 2)
    plans = [target._sampler.next(target.weights_G) for _ in range(8)]
    return [[int(1000 * s + n) for s, n in zip(plan.source_B, plan.sequence_B, strict=True)] for plan in plans]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import json

    folder = tmp_path_factory.mktemp("defects")
    command = [sys.executable, "-c", COUNT_PASSES, str(TESTS), str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def test_2_target_batches_are_fresh_until_all_of_the_target_was_seen(measured: dict[str, Any]) -> None:
    """The reference code takes the first micro-batch of the validation loader every time."""
    batches = measured["seen"]
    seen = [
        sequence for batch in batches[:4] for sequence in batch
    ]  # each target's half holds 8 sequences: 4 batches of 2 from each
    assert len(set(seen)) == 16 and set(seen) == {sequence for batch in batches[4:] for sequence in batch}


def test_9_an_update_costs_two_passes_whatever_the_number_of_sources(measured: dict[str, Any]) -> None:
    """The reference code makes K + 1 extra forward and backward passes."""
    assert measured["passes"] == [2, 2]
