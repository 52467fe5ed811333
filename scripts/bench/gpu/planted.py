"""A corpus made on the spot whose best mixture is known: languages of disjoint vocabularies, a target that blends them, and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from planted_shards import write_split

from fastmix_data.arrays import Int64s
from fastmix_data.recipe.load import parse_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from train.search.plan import SearchPlan, plan_search

ALPHABET, BLOCK = 300, 512
BLEND = {"most": 0.7, "some": 0.2, "little": 0.1}  # shares of the target
SOURCES = (*BLEND, "noise")
VOCABULARY = ALPHABET * len(BLEND)


def language(number: int, num_blocks: int, *, seed: int) -> Int64s:
    """Blocks of a Markov chain over an alphabet that no other language uses, shape (blocks, BLOCK)."""
    logits_AA = 3 * np.random.default_rng(1 + number).normal(size=(ALPHABET, ALPHABET))
    cumulative_AA = (np.exp(logits_AA) / np.exp(logits_AA).sum(axis=1, keepdims=True)).cumsum(axis=1)
    uniform = np.random.default_rng(seed).random((BLOCK, num_blocks))
    tokens = np.zeros((BLOCK, num_blocks), np.int64)
    for place in range(1, BLOCK):
        tokens[place] = (cumulative_AA[tokens[place - 1]] < uniform[place][:, None]).sum(axis=1).clip(max=ALPHABET - 1)
    return tokens.T + number * ALPHABET


def plan_planted(
    root: Path, *, num_blocks: int, proxy: dict[str, Any], training: dict[str, Any], search: dict[str, Any]
) -> SearchPlan:
    """A search for the blend; the corpus is written where it is not there yet.

    Args:
        num_blocks: of each source; the target has a quarter of them.
    """
    rng = np.random.default_rng(0)
    blend = [language(k, max(2, round(num_blocks / 4 * share)), seed=50 + k) for k, share in enumerate(BLEND.values())]
    rows = [write_split(root, "blend", "valid", rng.permutation(np.concatenate(blend)).reshape(-1), block=BLOCK)]
    for number, name in enumerate(SOURCES):
        for split, count in (("train", num_blocks), ("valid", max(2, num_blocks // 8))):
            is_noise = name == "noise"
            made = (
                rng.integers(0, VOCABULARY, (count, BLOCK))
                if is_noise
                else language(number, count, seed=100 + 2 * number + (split == "valid"))
            )
            rows.append(write_split(root, name, split, made.reshape(-1), block=BLOCK))
    catalog = Catalog(root, CatalogInfo(BLOCK, VOCABULARY, 0, "planted", sources=SOURCES, target_files=("blend",)), rows)
    catalog.save(root / "catalog.parquet")
    content = {
        "workdir": str(root),
        "tokenizer": {"bytes": True},
        "sources": {name: {"files": "none"} for name in SOURCES},
        "shards": {"block_tokens": BLOCK},
        "target": {"files": {"blend": {"files": "none"}}},
        "proxy": {"config": proxy},
        "training": training,
        # Counts would know the answer before the first step; what is looked at is what the scores make of it.
        "search": {"initial_weights": "uniform", "average_fraction": 0.5, **search},
    }
    return plan_search(parse_recipe(content, name="planted"), catalog)
