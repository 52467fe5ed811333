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
from planted_languages import (
    ALPHABET,
    BLEND,
    NUM_LANGUAGES,
    OPTIMUM,
    recipe,
    write_blend,
    write_language,
    write_noise,
)
from planted_shards import BLOCK, write_split

from fastmix_data.recipe.load import load_recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from train.search.plan import plan_search
from train.search.search import search


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
        return search(plan_search(load_recipe(path)), num_seeds=num_seeds, quiet=True).mixture

    return work


def test_the_best_mixture_for_a_blend_of_three_sources_is_recovered_within_the_interval_over_seeds(
    find: Callable[..., Mixture],
) -> None:
    sources = {f"language{k}": write_language(k, 120_000, seed=10 + k) for k in range(NUM_LANGUAGES)}
    found = find(sources, num_seeds=3, update_interval=2, target_batch=32)
    weights_NK = np.array([list(weights.values()) for weights in found.certainty.seed_weights.values()])
    # The interval over seeds, but not over other documents of the target: the target is a single one here, which says nothing of others.
    half_K = 2.92 * weights_NK.std(axis=0, ddof=1) * (1 + 1 / 3) ** 0.5
    assert (np.abs(weights_NK.mean(axis=0) - OPTIMUM) <= half_K).all(), found.certainty
    assert list(found.weights.values()) == pytest.approx(OPTIMUM, abs=0.1)
    assert all(high - low > 0.5 for low, high in found.certainty.seed_interval.values())


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
    assert min(twice["first"], twice["copy"]) > 0.2 * (twice["first"] + twice["copy"])
