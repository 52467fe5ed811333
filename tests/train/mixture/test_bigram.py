"""The mixture that is best for a bigram model, and where searches start."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_languages import BLEND, NUM_LANGUAGES, OPTIMUM, write_blend, write_language
from planted_languages import recipe as planted_recipe
from planted_shards import BLOCK, write_split

from fastmix_data.recipe.file import parse_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from train.mixture.bigram import BigramCounts, best_weights, bigram_weights, count_bigrams, loss_and_gradient
from train.mixture.stated import start_and_prior, stated_weights, swarm_centre

VOCAB_SIZE = 9


def small_catalog(root: Path) -> tuple[Recipe, Catalog]:
    """Two sources, the second masked, and a masked target."""
    random = np.random.default_rng(0)
    rows = [
        write_split(root / "run", "plain", "train", random.integers(0, VOCAB_SIZE, 500)),
        write_split(root / "run", "masked", "train", random.integers(0, VOCAB_SIZE // 2, 300), masked=True),
        write_split(root / "run", "blend", "valid", random.integers(0, VOCAB_SIZE, 600), masked=True),
    ]
    info = CatalogInfo(BLOCK, VOCAB_SIZE, VOCAB_SIZE - 1, "small", sources=("plain", "masked"), target_files=("blend",))
    catalog = Catalog(root / "run", info, rows)
    return parse_recipe(planted_recipe("run", ["plain", "masked"], {}), name="small").located(root), catalog


def naive_counts(recipe: Recipe, catalog: Catalog, source: str) -> tuple[Counter[tuple[int, int]], int]:
    """Pairs with loss, and tokens of all sequences, one by one."""
    from fastmix_data.shards.sequences import SequenceReader

    length = recipe.search.sequence_length
    half = "search" if source == "blend" else None
    split = "valid" if source == "blend" else "train"
    reader = SequenceReader(catalog, sources=[source], split=split, sequence_length=length, half=half)
    pairs: Counter[tuple[int, int]] = Counter()
    for number in range(int(reader.num_sequences_K[0])):
        tokens, carries_loss = reader.read(np.array([0]), np.array([number]))
        for t in range(length):
            if carries_loss[0, t]:
                pairs[int(tokens[0, t]), int(tokens[0, t + 1])] += 1
    return pairs, int(reader.num_sequences_K[0]) * length


def test_counts_are_those_of_a_plain_loop_and_leave_masked_labels_out(tmp_path: Path) -> None:
    recipe, catalog = small_catalog(tmp_path)
    counts = count_bigrams(recipe, catalog)
    target, _ = naive_counts(recipe, catalog, "blend")
    pairs = sorted(target)
    firsts, seconds = sorted({a for a, _ in pairs}), sorted({b for _, b in pairs})
    assert counts.importance_M == pytest.approx([target[pair] / target.total() for pair in pairs])
    assert [(firsts[i], seconds[j]) for i, j in zip(counts.first_M, counts.second_M, strict=True)] == pairs
    for k, source in enumerate(catalog.sources):
        found, num_tokens = naive_counts(recipe, catalog, source)
        assert counts.pairs_KM[k] == pytest.approx([found[pair] / num_tokens for pair in pairs], rel=1e-6)
        assert counts.firsts_KA[k] == pytest.approx(
            [sum(n for (x, _), n in found.items() if x == a) / num_tokens for a in firsts]
        )
        assert counts.seconds_KB[k] == pytest.approx(
            [sum(n for (_, x), n in found.items() if x == b) / num_tokens for b in seconds]
        )
        assert counts.labels_K[k] == pytest.approx(found.total() / num_tokens)
    assert counts.labels_K[0] > 3 * counts.labels_K[1]


def test_the_derivative_is_that_of_the_loss(tmp_path: Path) -> None:
    counts = count_bigrams(*small_catalog(tmp_path))
    exact = BigramCounts(**{**vars(counts), "pairs_KM": counts.pairs_KM.astype(np.float64)})
    weights_K = np.array([0.3, 0.7])
    _, gradient_K = loss_and_gradient(exact, weights_K, num_tokens=5000)
    for k, step_K in enumerate(1e-3 * np.eye(2)):
        above, below = (loss_and_gradient(exact, weights_K + sign * step_K, num_tokens=5000)[0] for sign in (1, -1))
        assert gradient_K[k] == pytest.approx((above - below) / 2e-3, rel=1e-3)


def blend_of_languages(root: Path, settings: dict[str, Any]) -> tuple[Recipe, Catalog]:
    sources = {f"language{k}": write_language(k, 120_000, seed=10 + k) for k in range(NUM_LANGUAGES)}
    rows = [write_split(root / "run", name, "train", tokens) for name, tokens in sources.items()]
    rows.append(write_split(root / "run", "blend", "valid", write_blend(BLEND, num_blocks=400)))
    info = CatalogInfo(BLOCK, 361, 360, "planted", sources=tuple(sources), target_files=("blend",))
    recipe = parse_recipe(planted_recipe("run", list(sources), settings), name="planted").located(root)
    return recipe, Catalog(root / "run", info, rows)


def test_the_blend_of_three_languages_has_its_best_mixture_near_that_of_trained_proxies(tmp_path: Path) -> None:
    recipe, catalog = blend_of_languages(tmp_path, {"initial_weights": "bigram"})
    counts = count_bigrams(recipe, catalog)
    weights_K = best_weights(counts, num_tokens=recipe.search.token_budget)
    assert weights_K == pytest.approx(np.array(OPTIMUM), abs=0.1)
    loss, gradient_K = loss_and_gradient(counts, weights_K, num_tokens=recipe.search.token_budget)
    assert weights_K @ gradient_K - gradient_K.min() < 2e-3  # no direction on the simplex promises more
    assert loss < loss_and_gradient(counts, np.array(BLEND), num_tokens=recipe.search.token_budget)[0]


def test_a_search_is_pulled_to_where_it_starts_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    recipe, catalog = small_catalog(tmp_path)
    best_K = bigram_weights(recipe, catalog)

    def both(**settings: Any) -> list[list[float]]:
        search = recipe.search.model_validate({**recipe.search.model_dump(), **settings})
        return [weights_K.tolist() for weights_K in start_and_prior(recipe.model_copy(update={"search": search}), catalog)]

    assert both(initial_weights="bigram") == [pytest.approx(best_K, abs=1e-3)] * 2
    assert both(initial_weights="uniform") == [[0.5, 0.5]] * 2
    assert both(initial_weights="uniform", prior="bigram") == [[0.5, 0.5], pytest.approx(best_K, abs=1e-3)]
    assert both(initial_weights="proportional", prior={"plain": 1, "masked": 3})[1] == [0.25, 0.75]


def test_swarms_do_not_learn_the_target_from_our_prior(tmp_path: Path) -> None:
    recipe, catalog = small_catalog(tmp_path)
    for prior, expected in ((None, "uniform"), ("bigram", "uniform"), ("proportional", "proportional")):
        search = recipe.search.model_copy(update={"prior": prior})
        centre_K = swarm_centre(recipe.model_copy(update={"search": search}), catalog)
        assert centre_K.tolist() == stated_weights(catalog, expected).tolist()
