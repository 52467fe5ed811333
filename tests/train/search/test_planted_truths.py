"""Searches whose answer is known by construction.

Sources speak languages of disjoint vocabularies, so one teaches nothing about another and the loss L_k of each depends on its own tokens
alone. For a target that is a blend with shares w of them, the best fixed mixture then makes w_k dL_k/dp_k equal over k. It
is the blend itself only if losses fall with the logarithm of tokens; where they fall as a power, L_k = E_k + c n^-a, it is
p_k ~ w_k^(1 / (1 + a)), which is flatter. OPTIMUM was measured by brute force: 33 proxies trained by `train_on_mixture` at the budget and
settings below on 11 mixtures and three seeds, and a parabola through the paired losses (nats, by share of the first source with the other
two at 62:38):

    share   0.40   0.50   0.55   0.60   0.65   0.70   0.80
    loss   2.814  2.787  2.783  2.785  2.794  2.809  2.876

and likewise for the ratio of the other two. The formula with a = 0.5 gives nearly the same: 0.59, 0.25, 0.16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from planted_shards import BLOCK, write_split

from fastmix_data.recipe.file import load_recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from train.search.search import search

ALPHABET, NUM_LANGUAGES = 120, 3
BLEND = (0.7, 0.2, 0.1)
OPTIMUM = (0.563, 0.295, 0.142)
SEQUENCE_LENGTH, GLOBAL_BATCH = 32, 16


def write_language(language: int, num_tokens: int, *, seed: int) -> np.ndarray:
    """Tokens of a Markov chain over an alphabet that no other language uses; about five likely successors per token."""
    logits_AA = 3 * np.random.default_rng(1 + language).normal(size=(ALPHABET, ALPHABET))
    logits_AA -= 0.5 * np.log(np.arange(1, ALPHABET + 1))
    cumulative_AA = (np.exp(logits_AA) / np.exp(logits_AA).sum(axis=1, keepdims=True)).cumsum(axis=1)
    uniform = np.random.default_rng(seed).random(num_tokens)
    tokens = np.zeros(num_tokens, np.int64)
    for i in range(1, num_tokens):
        tokens[i] = min(np.searchsorted(cumulative_AA[tokens[i - 1]], uniform[i]), ALPHABET - 1)
    return tokens + language * ALPHABET


def write_blend(shares: Sequence[float], *, num_blocks: int) -> np.ndarray:
    """Held-out blocks of the languages in these shares, in random order."""
    blocks = [
        write_language(k, BLOCK * round(num_blocks * share), seed=30 + k).reshape(-1, BLOCK) for k, share in enumerate(shares)
    ]
    return np.random.default_rng(0).permutation(np.concatenate(blocks)).reshape(-1)


def write_noise(num_tokens: int) -> np.ndarray:
    """Tokens of all languages without any order."""
    return np.random.default_rng(99).integers(0, NUM_LANGUAGES * ALPHABET, num_tokens)


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Mixture]:
    """Search the mixture of given training tokens for a target that blends the languages."""

    def work(
        train: dict[str, np.ndarray],
        *,
        shares: Sequence[float] = BLEND,
        num_seeds: int | None = None,
        workdir: str = "run",
        **settings: Any,
    ) -> Mixture:
        root = tmp_path / workdir
        rows = [write_split(root, source, "train", tokens) for source, tokens in train.items()]
        rows.append(write_split(root, "blend", "valid", write_blend(shares, num_blocks=400)))
        vocabulary = NUM_LANGUAGES * ALPHABET + 1
        info = CatalogInfo(BLOCK, vocabulary, vocabulary - 1, "planted", sources=tuple(train), target_files=("blend",))
        Catalog(root, info, rows).save(root / "catalog.parquet")
        path = tmp_path / f"{workdir}.yaml"
        path.write_text(yaml.safe_dump(recipe(workdir, list(train), settings), sort_keys=False))
        return search(load_recipe(path), num_seeds=num_seeds, quiet=True).mixture

    return work


def recipe(workdir: str, sources: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    proxy = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "tie_word_embeddings": False,
    }
    defaults = {
        "token_budget": GLOBAL_BATCH * SEQUENCE_LENGTH * 150,
        "sequence_length": SEQUENCE_LENGTH,
        "global_batch": GLOBAL_BATCH,
        "target_batch": 16,
        "learning_rate": 3e-3,
        "update_interval": 1,
        "weights_warmup_steps": 2,
        "eval_sequences": 16,
        # Scores alone have to find the answer here; a bigram model would know it before the first step.
        "initial_weights": "uniform",
        "prior_strength": 0.0,
        # What production should read over a whole run is what the proxy read over its own: from the first update on.
        "average_fraction": 1.0,
    }
    return {
        "workdir": workdir,
        "tokenizer": {"bytes": True},
        "sources": {source: {"files": f"{source}.txt"} for source in sources},
        "shards": {"block_tokens": BLOCK},
        "target": {"files": {"blend": {"files": "blend.txt"}}},
        "proxy": {"config": proxy},
        "search": {**defaults, **settings},
        "emit": {"token_budget": 1000},
    }


def test_the_best_mixture_for_a_blend_of_three_sources_is_recovered_within_the_interval(find: Callable[..., Mixture]) -> None:
    sources = {f"language{k}": write_language(k, 120_000, seed=10 + k) for k in range(NUM_LANGUAGES)}
    found = find(sources, num_seeds=3, update_interval=2)
    for name, best in zip(sources, OPTIMUM, strict=True):
        low, high = found.seed_interval[name]
        assert low <= best <= high, (name, found.weights, found.seed_interval)
        assert found.weights[name] == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_a_source_without_worth_tends_to_its_floor(find: Callable[..., Mixture], floor: float) -> None:
    sources = {f"language{k}": write_language(k, 40_000, seed=10 + k) for k in range(2)} | {"noise": write_noise(40_000)}
    found = find(sources, shares=(0.5, 0.5), average_fraction=0.5, constraints={"floor": floor})
    assert floor - 1e-6 <= found.weights["noise"] < floor + 0.03
    assert min(found.weights["language0"], found.weights["language1"]) > 0.25
    assert (found.binding.get("noise") == "floor") == (floor > 0)


def test_a_source_given_twice_shares_what_it_would_get_once(find: Callable[..., Mixture]) -> None:
    """Nothing but the noise of scores moves weight between copies, so each keeps a part and only their sum is sharp."""
    texts = [write_language(k, 40_000, seed=10 + k) for k in range(2)]
    settings = {"shares": (0.6, 0.4), "update_interval": 2, "target_batch": 32}
    once = find({"first": texts[0], "second": texts[1]}, workdir="once", **settings).weights
    twice = find(
        {"first": texts[0], "copy": texts[0], "second": texts[1]},
        workdir="twice",
        initial_weights={"first": 0.25, "copy": 0.25, "second": 0.5},
        **settings,
    ).weights
    assert twice["first"] + twice["copy"] == pytest.approx(once["first"], abs=0.1)
    assert min(twice["first"], twice["copy"]) > 0.3 * (twice["first"] + twice["copy"])
