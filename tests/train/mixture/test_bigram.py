"""The mixture that is best for a bigram model, against a plain loop, finite differences, a linear programme and planted answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_languages import BLEND, NUM_LANGUAGES, OPTIMUM, write_blend, write_language
from planted_languages import recipe as planted_recipe
from planted_shards import BLOCK, write_split
from scipy.optimize import linprog

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.load import parse_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from fastmix_data.shards.sequences import SequenceReader
from train.mixture import bigram
from train.mixture.bigram import BigramCounts, best_weights, count_bigrams, loss_and_gradient
from train.mixture.constraints import MixtureConstraints, stated_constraints
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
    assert counts.num_counted == max(naive_counts(plan, source)[1] for source in plan.catalog.sources)


def test_the_derivative_is_that_of_the_loss(small_plan: SearchPlan) -> None:
    counts = count_bigrams(small_plan.proxy, TARGET)
    exact = BigramCounts(**{**vars(counts), "pairs_KM": counts.pairs_KM.astype(np.float64)})
    weights_K = np.array([0.3, 0.7])
    _, gradient_K = loss_and_gradient(exact, weights_K, num_tokens=5000)
    for k, step_K in enumerate(1e-3 * np.eye(2)):
        above, below = (loss_and_gradient(exact, weights_K + sign * step_K, num_tokens=5000)[0] for sign in (1, -1))
        assert gradient_K[k] == pytest.approx((above - below) / 2e-3, rel=1e-3)


def bounds_of(sources: tuple[str, ...], **sections: Any) -> MixtureConstraints:
    return stated_constraints(ConstraintsSection.model_validate(sections), sources=sources)


def languages_plan(
    root: Path, sources: dict[str, np.ndarray], target: np.ndarray, *, vocab_size: int, **settings: Any
) -> ProxyPlan:
    rows = [write_split(root / "run", name, "train", tokens) for name, tokens in sources.items()]
    rows.append(write_split(root / "run", "blend", "valid", target))
    info = CatalogInfo(BLOCK, vocab_size, vocab_size - 1, "planted", sources=tuple(sources), target_files=("blend",))
    recipe = parse_recipe(planted_recipe("run", list(sources), settings), name="planted").located(root)
    return plan_search(recipe, Catalog(root / "run", info, rows)).proxy


def test_the_blend_of_three_languages_has_its_best_mixture_near_that_of_trained_proxies(tmp_path: Path) -> None:
    sources = {f"language{k}": write_language(k, 120_000, seed=10 + k) for k in range(NUM_LANGUAGES)}
    plan = languages_plan(tmp_path, sources, write_blend(BLEND, num_blocks=400), vocab_size=361)
    counts, free = count_bigrams(plan, TARGET), bounds_of(plan.catalog.sources)
    weights_K = best_weights(counts, num_tokens=plan.training.token_budget, constraints=free)
    assert weights_K == pytest.approx(np.array(OPTIMUM), abs=0.1)


def write_dialects(num_tokens: int, *, language: int, seed: int, num_letters: int = 200) -> np.ndarray:
    """Tokens of a Markov chain over an alphabet that all dialects share, as they share half of what decides about the next letter."""
    shared_AA = np.random.default_rng(0).normal(size=(num_letters, num_letters))
    own_AA = np.random.default_rng(1 + language).normal(size=(num_letters, num_letters))
    odds_AA = np.exp(shared_AA + own_AA - np.log(np.arange(1, num_letters + 1)))
    cumulative_AA = (odds_AA / odds_AA.sum(axis=1, keepdims=True)).cumsum(axis=1)
    tokens_TN = np.zeros((BLOCK, num_tokens // BLOCK), np.int64)
    for t, uniform_N in enumerate(np.random.default_rng(seed).random((BLOCK - 1, tokens_TN.shape[1])), 1):
        next_N = (cumulative_AA[tokens_TN[t - 1]] < uniform_N[:, None]).sum(axis=1)
        tokens_TN[t] = np.minimum(next_N, num_letters - 1)
    return tokens_TN.T.reshape(-1)


def test_the_answer_hardly_depends_on_how_much_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken at their word, the counts of few tokens say that most pairs are impossible, so that a blend of all sources looks best."""
    sources = {f"dialect{k}": write_dialects(1 << 17, language=k, seed=10 + k) for k in range(5)}
    target = np.concatenate([write_dialects(70_000, language=0, seed=90), write_dialects(30_000, language=1, seed=91)])
    target = np.random.default_rng(0).permutation(target[: len(target) // BLOCK * BLOCK].reshape(-1, BLOCK)).reshape(-1)
    plan = languages_plan(tmp_path, sources, target, vocab_size=201)
    free, limited, unlimited = bounds_of(plan.catalog.sources), [], []
    for most in (1 << 17, 1 << 15, 1 << 13):
        monkeypatch.setattr(bigram, "_MOST_TOKENS_OF_A_SOURCE", most)
        counts = count_bigrams(plan, TARGET)
        assert counts.num_counted == most
        limited.append(best_weights(counts, num_tokens=600_000, constraints=free))
        unlimited.append(best_weights(replace(counts, num_counted=1 << 40), num_tokens=600_000, constraints=free))
    assert np.abs(np.array(limited) - [0.7, 0.3, 0, 0, 0]).max() < 0.08
    assert np.abs(limited[2] - limited[0]).max() < 0.05 < 0.1 < np.abs(unlimited[2] - unlimited[0]).max()


def made_counts(num_sources: int, *, vocab_size: int = 12, seed: int = 0) -> BigramCounts:
    """Sources that share some of their pairs with a target, which is nearest to the first ones."""
    rng = np.random.default_rng(seed)
    frequency_KVV = rng.dirichlet(np.full(vocab_size**2, 0.3), num_sources).reshape(num_sources, vocab_size, vocab_size)
    target_M = (0.5 ** np.arange(num_sources) @ frequency_KVV.reshape(num_sources, -1)) * rng.uniform(0.5, 1.5, vocab_size**2)
    first_M, second_M = np.divmod(np.arange(vocab_size**2), vocab_size)
    return BigramCounts(
        importance_M=target_M / target_M.sum(),
        halves_SM=np.zeros((0, len(target_M))),
        first_M=first_M,
        second_M=second_M,
        pairs_KM=frequency_KVV.reshape(num_sources, -1).astype(np.float32),
        firsts_KA=frequency_KVV.sum(axis=2),
        seconds_KB=frequency_KVV.sum(axis=1),
        labels_K=np.ones(num_sources),
        vocab_size=vocab_size,
        num_counted=1 << 20,
    )


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"ceiling": 0.3},
        {"ceiling": {"a": 0.2, "b": 0.1}, "floor": {"g": 0.15}},
        {"floor": 0.05},
        {"groups": {"best": {"sources": ["a", "b", "c"], "max": 0.3}, "worst": {"sources": ["f", "g", "h"], "min": 0.5}}},
        {"pinned": {"a": 0.1, "h": 0.3}, "ceiling": {"b": 0.05, "c": 0.0}},
        {"pinned": {"h": 0.2}, "ceiling": 0.35, "groups": {"best": {"sources": ["a", "b"], "min": 0.05, "max": 0.25}}},
    ],
)
def test_no_direction_within_the_constraints_promises_more(sections: dict[str, Any]) -> None:
    """Karush, Kuhn and Tucker: of all mixtures within the bounds, none is lower on the gradient than the one found."""
    counts, sources = made_counts(8), tuple("abcdefgh")
    bounds = bounds_of(sources, **sections)
    weights_K = best_weights(counts, num_tokens=100_000, constraints=bounds)
    loss, gradient_K = loss_and_gradient(counts, weights_K, num_tokens=100_000)
    members_GK = np.array([np.isin(np.arange(8), group.members) for group in bounds.groups.values()]).reshape(-1, 8)
    totals = [np.array([getattr(group, name) for group in bounds.groups.values()]) for name in ("most", "least")]
    best = linprog(
        gradient_K,
        A_ub=np.concatenate([members_GK, -1.0 * members_GK]),
        b_ub=np.concatenate([totals[0], -totals[1]]),
        A_eq=np.ones((1, 8)),
        b_eq=[1],
        bounds=np.stack([bounds.floor_K, bounds.ceiling_K], axis=1),
    )
    assert gradient_K @ weights_K - best.fun < 1e-3
    assert bounds.promise(weights_K, gradient_K) == pytest.approx(gradient_K @ weights_K - best.fun, abs=1e-9)
    assert np.allclose(bounds.project(weights_K), weights_K, atol=1e-12)
    if sections:
        free_K = best_weights(counts, num_tokens=100_000, constraints=bounds_of(sources))
        assert loss < loss_and_gradient(counts, bounds.project(free_K), num_tokens=100_000)[0] + 1e-6
