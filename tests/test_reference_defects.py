"""Each defect of the method's reference code, and the test that ours does not have it.

Some are shown here; for the rest the table names the test that does, and this file checks that it exists. Number 8, an entropy term of the
wrong sign, has none: the mixture follows its scores alone.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, write_shard
from train.mixture.simplex import uniform
from train.proxy.engine import process_group
from train.proxy.training import ProxyPlan
from train.search.proxy_run import ProxyRun
from train.target.target import Target

TESTS = Path(__file__).parent
SHOWN_ELSEWHERE = {
    "1 gradients are lost within an accumulation window": (
        "train/proxy/test_engine.py",
        "test_any_micro_batch_gives_the_same_step",
    ),
    "3 sources are absent from the probed batch": (
        "fastmix_data/test_sampler.py",
        "test_realised_counts_stay_within_two_sequences",
    ),
    "4 an absent source scores 0": ("train/scores/test_running_scores.py", "test_an_absent_source_keeps_its_estimate"),
    "5 the loss is divided by a micro-batch's weights": (
        "train/proxy/test_losses.py",
        "test_expected_training_gradient_is_the_same",
    ),
    "6 nothing ends the run": ("train/search/test_search.py", "test_a_search_ends_with_its_budget"),
    "7 ranks multiply local shards": ("train/proxy/test_engine.py", "test_scores_and_step_equal_plain_pytorch"),
    "10 initial weights count twice": ("train/proxy/test_losses.py", "test_nonuniform_initial_weights_do_not_count_twice"),
    "11 tails are lost": ("pipelines/preprocess/test_preprocess.py", "test_every_document_can_be_joined_again"),
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


def proxy_plan(root: Path, num_sources: int) -> ProxyPlan:
    small = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    training = TrainingSection(token_budget=10**6, sequence_length=16, global_batch=8)
    return ProxyPlan(write_catalog(root, num_sources), ProxySection(config=small), root, training, DeepspeedSection())


def target_of(plan: ProxyPlan, search: SearchSection) -> Target:
    first, second = plan.catalog.sources[:2]
    return Target.of_plan(plan, TargetSection(sources={first: 1, second: 1}), search, num_ranks=1)


def test_2_target_batches_are_fresh_until_all_of_the_target_was_seen(tmp_path: Path) -> None:
    """The reference code takes the first micro-batch of the validation loader every time."""
    target = target_of(proxy_plan(tmp_path, 2), SearchSection(target_batch=4))
    plans = [target._sampler.next(target.weights_G) for _ in range(8)]
    batches = [set(zip(plan.source_B.tolist(), plan.sequence_B.tolist(), strict=True)) for plan in plans]
    assert [len(batch) for batch in batches] == [4] * 8
    # Each target's half holds 8 sequences: 4 batches of 2 from each.
    assert len(set.union(*batches[:4])) == 16 and set.union(*batches[:4]) == set.union(*batches[4:])


def test_9_an_update_costs_two_passes_whatever_the_number_of_sources(tmp_path: Path) -> None:
    """One for the target and one for a batch of all sources, beside that of training; the reference code makes K + 1."""
    assert [count_passes(tmp_path / str(num_sources), num_sources) for num_sources in (2, 64)] == [3, 3]


def count_passes(root: Path, num_sources: int) -> int:
    """Forward passes of one scored step."""
    plan = proxy_plan(root, num_sources)
    search = SearchSection(target_batch=4, update_interval=1)
    uniform_K, passes = uniform(num_sources), []
    with process_group(rank=0, world_size=1):
        engine, target = plan.build_engine(seed=0), target_of(plan, search)
        run = ProxyRun(plan, search=search, engine=engine, target=target, initial_K=uniform_K)
        engine.module.register_forward_hook(lambda *_: passes.append(1))
        run.search_step()
        engine.close()
    return len(passes)
