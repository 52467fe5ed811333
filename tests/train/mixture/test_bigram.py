"""The mixture that is best for a bigram model, against counts by a plain loop, finite differences and a planted answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from planted_languages import BLEND, NUM_LANGUAGES, OPTIMUM, write_blend, write_language
from planted_languages import recipe as planted_recipe
from planted_shards import BLOCK, write_split

from fastmix_data.recipe.load import parse_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from fastmix_data.shards.sequences import SequenceReader
from train.mixture.bigram import BigramCounts, best_weights, count_bigrams, loss_and_gradient
from train.proxy.training import ProxyPlan
from train.search.plan import SearchPlan, plan_search

TARGET = {"blend": 1.0}


def naive_counts(plan: ProxyPlan, source: str) -> tuple[Counter[tuple[int, int]], int]:
    """Pairs with loss, and tokens of all sequences, one by one."""
    length, is_target = plan.training.sequence_length, source == "blend"
    split, half = ("valid", "search") if is_target else ("train", None)
    reader = SequenceReader(plan.catalog, sources=[source], split=split, sequence_length=length, half=half)
    pairs: Counter[tuple[int, int]] = Counter()
    for number in range(int(reader.num_sequences_K[0])):
        tokens, carries_loss, _ = reader.read(np.array([0]), np.array([number]))
        for t in range(length):
            if carries_loss[0, t]:
                pairs[int(tokens[0, t]), int(tokens[0, t + 1])] += 1
    return pairs, int(reader.num_sequences_K[0]) * length


def test_counts_are_those_of_a_plain_loop_and_leave_masked_labels_out(small_plan: SearchPlan) -> None:
    plan = small_plan.proxy
    counts = count_bigrams(plan, TARGET)
    target, _ = naive_counts(plan, "blend")
    pairs = sorted(target)
    firsts, seconds = sorted({a for a, _ in pairs}), sorted({b for _, b in pairs})
    assert counts.importance_M == pytest.approx([target[pair] / target.total() for pair in pairs])
    assert [(firsts[i], seconds[j]) for i, j in zip(counts.first_M, counts.second_M, strict=True)] == pairs
    for k, source in enumerate(plan.catalog.sources):
        found, num_tokens = naive_counts(plan, source)
        assert counts.pairs_KM[k] == pytest.approx([found[pair] / num_tokens for pair in pairs], rel=1e-6)
        assert counts.firsts_KA[k] == pytest.approx(
            [sum(n for (x, _), n in found.items() if x == a) / num_tokens for a in firsts]
        )
        assert counts.seconds_KB[k] == pytest.approx(
            [sum(n for (_, x), n in found.items() if x == b) / num_tokens for b in seconds]
        )
        assert counts.labels_K[k] == pytest.approx(found.total() / num_tokens)
    assert counts.labels_K[0] > 3 * counts.labels_K[1]


def test_the_derivative_is_that_of_the_loss(small_plan: SearchPlan) -> None:
    counts = count_bigrams(small_plan.proxy, TARGET)
    exact = BigramCounts(**{**vars(counts), "pairs_KM": counts.pairs_KM.astype(np.float64)})
    weights_K = np.array([0.3, 0.7])
    _, gradient_K = loss_and_gradient(exact, weights_K, num_tokens=5000)
    for k, step_K in enumerate(1e-3 * np.eye(2)):
        above, below = (loss_and_gradient(exact, weights_K + sign * step_K, num_tokens=5000)[0] for sign in (1, -1))
        assert gradient_K[k] == pytest.approx((above - below) / 2e-3, rel=1e-3)


def blend_of_languages(root: Path) -> ProxyPlan:
    sources = {f"language{k}": write_language(k, 120_000, seed=10 + k) for k in range(NUM_LANGUAGES)}
    rows = [write_split(root / "run", name, "train", tokens) for name, tokens in sources.items()]
    rows.append(write_split(root / "run", "blend", "valid", write_blend(BLEND, num_blocks=400)))
    info = CatalogInfo(BLOCK, 361, 360, "planted", sources=tuple(sources), target_files=("blend",))
    recipe = parse_recipe(planted_recipe("run", list(sources), {}), name="planted").located(root)
    return plan_search(recipe, Catalog(root / "run", info, rows)).proxy


def test_the_blend_of_three_languages_has_its_best_mixture_near_that_of_trained_proxies(tmp_path: Path) -> None:
    plan = blend_of_languages(tmp_path)
    counts, num_tokens = count_bigrams(plan, TARGET), plan.training.token_budget
    weights_K = best_weights(counts, num_tokens=num_tokens)
    assert weights_K == pytest.approx(np.array(OPTIMUM), abs=0.1)
    loss, gradient_K = loss_and_gradient(counts, weights_K, num_tokens=num_tokens)
    assert weights_K @ gradient_K - gradient_K.min() < 2e-3  # no direction on the simplex promises more
    assert loss < loss_and_gradient(counts, np.array(BLEND), num_tokens=num_tokens)[0]
