"""The mixture that is best by counts, against plain loops, automatic differentiation and planted answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_languages import BLEND, NUM_LANGUAGES, write_blend, write_language
from planted_languages import recipe as planted_recipe
from planted_shards import BLOCK, write_split

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.load import parse_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from fastmix_data.shards.sequences import SequenceReader
from train.mixture import count as module
from train.mixture.constraints import MixtureConstraints, stated_constraints
from train.mixture.count import Count, best_weights, bigram_chances, count_passages
from train.proxy.training import ProxyPlan
from train.search.other_documents import document_width
from train.search.plan import SearchPlan, plan_search

TARGET = {"blend": 1.0}


def naive_discount(counts: Counter[Any]) -> float:
    once, twice = (sum(n == times for n in counts.values()) for times in (1, 2))
    return once / (once + 2 * twice) if once and twice else 0.5


def naive_chance(pairs: list[tuple[int, int]], pair: tuple[int, int], *, vocab_size: int) -> float:
    """Absolute discounting in two levels, one pair at a time."""
    a, b = pair
    kinds, seconds = Counter(pairs), Counter(second for _, second in pairs)
    discount = naive_discount(seconds)
    freed = discount * len(seconds) / len(pairs)
    unigram = max(seconds[b] - discount, 0) / len(pairs) + freed / vocab_size
    after = {second: n for (first, second), n in kinds.items() if first == a}
    if not after:
        return unigram
    discount = naive_discount(kinds)
    return (max(after.get(b, 0) - discount, 0) + discount * len(after) * unigram) / sum(after.values())


@given(st.integers(2, 9), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60))
def test_chances_are_those_of_a_plain_loop_and_sum_to_one(vocab_size: int, drawn: list[tuple[int, int]]) -> None:
    pairs = [(a % vocab_size, b % vocab_size) for a, b in drawn]
    keys = np.array([a * vocab_size + b for a, b in pairs])
    everything = np.arange(vocab_size**2)
    chances = bigram_chances(keys, everything, vocab_size=vocab_size)
    assert (chances > 0).all() and np.allclose(chances.reshape(vocab_size, -1).sum(axis=1), 1)
    expected = [naive_chance(pairs, divmod(int(key), vocab_size), vocab_size=vocab_size) for key in everything]
    assert chances == pytest.approx(expected)


def test_of_a_text_without_a_pair_all_tokens_are_as_likely() -> None:
    """Of a source that a proxy sees one sequence of (match_repetition), all labels may be masked."""
    assert bigram_chances(np.zeros(0, np.int64), np.arange(16), vocab_size=4).tolist() == [0.25] * 16


def naive_passages(plan: ProxyPlan, source: str, *, most: int) -> list[list[tuple[int, int]]]:
    """Pairs with loss, cut where a sequence or example begins and after so many, one by one."""
    is_target = source == "blend"
    reader = SequenceReader(
        plan.catalog,
        sources=[source],
        split="valid" if is_target else "train",
        sequence_length=plan.training.sequence_length,
        half="search" if is_target else None,
    )
    passages: list[list[tuple[int, int]]] = []
    for number in range(int(reader.num_sequences_K[0])):
        tokens, carries_loss, positions = reader.read(np.array([0]), np.array([number]))
        begins = True
        for t in range(plan.training.sequence_length):
            begins |= positions is not None and positions[0, t] == 0
            if carries_loss[0, t]:
                if begins or len(passages[-1]) == most:
                    passages.append([])
                passages[-1].append((int(tokens[0, t]), int(tokens[0, t + 1])))
                begins = False
    return passages


@pytest.mark.parametrize("most", [1, 5, 128])
def test_passages_end_with_sequences_and_examples_and_leave_masked_labels_out(small_plan: SearchPlan, most: int) -> None:
    plan = small_plan.proxy
    count = count_passages(plan, TARGET, passage_tokens=most)
    passages = naive_passages(plan, "blend", most=most)
    num_labels = sum(map(len, passages))
    assert {len(passage) for passage in passages} == {1: {1}, 5: {5, 3}, 128: {8}}[most]  # of 8 labels in each example
    assert count.importance_N == pytest.approx(np.full(len(passages), 1 / num_labels))
    for k, source in enumerate(plan.catalog.sources):
        pairs = [pair for passage in naive_passages(plan, source, most=1) for pair in passage]
        chance = {pair: naive_chance(pairs, pair, vocab_size=9) for passage in passages for pair in passage}
        expected = [sum(np.log(chance[pair]) for pair in passage) for passage in passages]
        assert count.log_likelihoods_NK[:, k] == pytest.approx(expected)
        num_tokens = int(plan.training_data().num_sequences_K[k]) * plan.training.sequence_length
        assert count.labels_K[k] == pytest.approx(len(pairs) / num_tokens)


def test_each_target_counts_by_its_weight_and_each_half_by_its_tokens(small_plan: SearchPlan) -> None:
    count = count_passages(small_plan.proxy, {"blend": 1.0}, passage_tokens=3)
    tokens_N = np.array([3, 3, 2] * (len(count.importance_N) // 3))
    assert tokens_N @ count.importance_N == pytest.approx(1)
    assert count.halves_SN.shape[0] == 2 * 7 and count.halves_SN @ tokens_N == pytest.approx(np.ones(14))
    for first_N, second_N in zip(count.halves_SN[::2] > 0, count.halves_SN[1::2] > 0, strict=True):
        assert (first_N ^ second_N).all()


def bounds_of(sources: tuple[str, ...], **sections: Any) -> MixtureConstraints:
    return stated_constraints(ConstraintsSection.model_validate(sections), sources=sources)


def languages_plan(root: Path, sources: dict[str, np.ndarray], target: np.ndarray, *, vocab_size: int) -> ProxyPlan:
    rows = [write_split(root / "run", name, "train", tokens) for name, tokens in sources.items()]
    rows.append(write_split(root / "run", "blend", "valid", target))
    info = CatalogInfo(BLOCK, vocab_size, vocab_size - 1, "planted", sources=tuple(sources), target_files=("blend",))
    recipe = parse_recipe(planted_recipe("run", list(sources), {}), name="planted").located(root)
    return plan_search(recipe, Catalog(root / "run", info, rows)).proxy


def test_of_languages_that_share_nothing_the_best_mixture_is_the_blend(tmp_path: Path) -> None:
    """As it is for models that know their source; trained ones want it somewhat flatter (`test_planted_truths.py`)."""
    sources = {f"language{k}": write_language(k, 60_000, seed=10 + k) for k in range(NUM_LANGUAGES)}
    plan = languages_plan(tmp_path, sources, write_blend(BLEND, num_blocks=400), vocab_size=361)
    weights_K = best_weights(count_passages(plan, TARGET), constraints=bounds_of(plan.catalog.sources))
    assert weights_K == pytest.approx(np.array(BLEND), abs=0.05)


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
    found = []
    for most in (1 << 17, 1 << 15, 1 << 13):
        monkeypatch.setattr(module, "_MOST_TOKENS_OF_A_SOURCE", most)
        found.append(best_weights(count_passages(plan, TARGET), constraints=bounds_of(plan.catalog.sources)))
    assert np.abs(np.array(found) - [0.7, 0.3, 0, 0, 0]).max() < 0.08
    assert np.abs(found[2] - found[0]).max() < 0.05


def made_count(num_sources: int, *, labels_K: list[float], seed: int = 0) -> Count:
    """Passages whose likeliest sources are the first ones."""
    rng = np.random.default_rng(seed)
    source_N = rng.choice(num_sources, size=300, p=0.6 ** np.arange(num_sources) / (0.6 ** np.arange(num_sources)).sum())
    log_likelihoods_NK = -rng.gamma(4.0, 1.0, size=(300, num_sources))
    log_likelihoods_NK[np.arange(300), source_N] += 3.0
    return Count(log_likelihoods_NK, np.array(labels_K), rng.uniform(0.5, 1.5, 300) / 300, np.zeros((0, 300)))


def gradient_of_loss(count: Count, tokens_K: np.ndarray) -> np.ndarray:
    """Derivative of the target's loss in shares of tokens: a model learns from labels, of which each source has its own share."""
    weights = torch.tensor(tokens_K, requires_grad=True)
    labels = weights * torch.tensor(count.labels_K)
    mixed = torch.logsumexp(torch.tensor(count.log_likelihoods_NK) + (labels / labels.sum()).log(), dim=1)
    (-(torch.tensor(count.importance_N) @ mixed)).backward()
    assert weights.grad is not None
    return weights.grad.numpy()


@pytest.mark.parametrize("labels_K", [[1.0] * 8, [1.0, 0.25, 1.0, 0.1, 1.0, 0.5, 1.0, 0.05]])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"ceiling": 0.3},
        {"ceiling": {"a": 0.2, "b": 0.1}, "floor": {"g": 0.15}},
        {"groups": {"best": {"sources": ["a", "b", "c"], "max": 0.3}, "worst": {"sources": ["f", "g", "h"], "min": 0.5}}},
        {"pinned": {"a": 0.1, "h": 0.3}, "ceiling": {"b": 0.05, "c": 0.0}},
        {"pinned": {"h": 0.2}, "ceiling": 0.35, "groups": {"best": {"sources": ["a", "b"], "min": 0.05, "max": 0.25}}},
    ],
)
def test_no_direction_within_the_constraints_promises_more(sections: dict[str, Any], labels_K: list[float]) -> None:
    """Karush, Kuhn and Tucker, for shares of tokens whatever part of a source's labels is masked."""
    count, bounds = made_count(8, labels_K=labels_K), bounds_of(tuple("abcdefgh"), **sections)
    weights_K = best_weights(count, constraints=bounds)
    assert bounds.promise(weights_K, gradient_of_loss(count, np.maximum(weights_K, 1e-300))) < 1e-4
    assert np.allclose(bounds.project(weights_K), weights_K, atol=1e-9)


def test_halves_of_which_nothing_was_counted_are_left_out(small_plan: SearchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_passages(small_plan.proxy, TARGET)
    monkeypatch.setattr(module, "_MOST_TARGET_TOKENS", 2 * small_plan.proxy.training.sequence_length)
    sampled = count_passages(small_plan.proxy, TARGET)
    assert 0 < len(sampled.halves_SN) < len(whole.halves_SN) and (sampled.halves_SN.sum(axis=1) > 0).all()
    assert np.isfinite(document_width(sampled, constraints=small_plan.constraints)).all()
