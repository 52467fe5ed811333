"""How far other documents of a target would move the answer: by drawing others, whose answers the intervals are to cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted_languages import ALPHABET, BLEND, NUM_LANGUAGES, write_language
from planted_languages import recipe as language_recipe
from planted_shards import BLOCK, write_split

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.load import parse_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from train.mixture.constraints import MixtureConstraints, stated_constraints
from train.mixture.count import best_weights, count_passages
from train.search.other_documents import combined, document_interval, document_width
from train.search.plan import plan_search

EOS = NUM_LANGUAGES * ALPHABET
NAMES = [f"language{k}" for k in range(NUM_LANGUAGES)]


def write_documents(num_documents: int, *, seed: int) -> np.ndarray:
    """Each of one language, drawn by the shares of the blend."""
    rng = np.random.default_rng(seed)
    documents = [
        np.append(write_language(int(rng.choice(NUM_LANGUAGES, p=BLEND)), int(rng.integers(100, 400)), seed=1000 * seed + d), EOS)
        for d in range(num_documents)
    ]
    return np.concatenate(documents)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ShardRow]]:
    root = tmp_path_factory.mktemp("languages") / "run"
    return root, [write_split(root, name, "train", write_language(k, 30_000, seed=10 + k)) for k, name in enumerate(NAMES)]


@pytest.mark.parametrize(("num_documents", "width"), [(10, (0.4, 0.95)), (200, (0.05, 0.25))])
def test_intervals_cover_what_other_documents_would_give_and_are_narrow_for_many(
    sources: tuple[Path, list[ShardRow]], num_documents: int, width: tuple[float, float]
) -> None:
    root, rows = sources
    free = stated_constraints(ConstraintsSection(), sources=NAMES)
    answers, intervals = [], []
    for seed in range(10):
        target = write_split(root, "blend", "valid", write_documents(num_documents, seed=100 * num_documents + seed))
        info = CatalogInfo(BLOCK, EOS + 1, EOS, f"{num_documents} {seed}", sources=tuple(NAMES), target_files=("blend",))
        recipe = parse_recipe(language_recipe("run", NAMES, {}), name="blend").located(root.parent)
        plan = plan_search(recipe, Catalog(root, info, [*rows, target])).proxy
        count = count_passages(plan, {"blend": 1.0})
        answer_K = free.concentrated(best_weights(count, constraints=free), 1)
        width_K = document_width(count, constraints=free)
        seen = {"num_documents": [num_documents // 2], "importance": [1.0]}
        answers.append(answer_K)
        intervals.append(document_interval(answer_K, width_K=width_K, bounds=free, **seen))
    covered = [
        (low_K <= answers[j]) & (answers[j] <= high_K) for i, (low_K, high_K) in enumerate(intervals) for j in range(10) if i != j
    ]
    assert np.mean(covered) >= 0.8
    assert width[0] <= np.mean([high_K - low_K for low_K, high_K in intervals]) <= width[1]


def bounds(**sections: object) -> MixtureConstraints:
    return stated_constraints(ConstraintsSection.model_validate(sections), sources=["a", "b", "c"])


def test_few_documents_leave_room_for_kinds_they_lack_and_no_bound_is_passed() -> None:
    weights_K = np.array([0.98, 0.01, 0.01])
    few = {"num_documents": [4], "importance": [1.0], "width_K": np.zeros(3)}
    low_K, high_K = document_interval(weights_K, bounds=bounds(), **few)
    assert low_K[0] == pytest.approx(0.1**0.25) and high_K[1:] == pytest.approx(1 - 0.1**0.25)
    low_K, high_K = document_interval(weights_K, bounds=bounds(pinned={"b": 0.01}, ceiling={"c": 0.2}), **few)
    assert (low_K[1], high_K[1], high_K[2]) == (0.01, 0.01, 0.2)
    many = {**few, "num_documents": [4, 2000], "importance": [0.0, 1.0]}
    low_K, high_K = document_interval(weights_K, bounds=bounds(), **many)
    assert np.allclose(low_K, weights_K, atol=2e-3) and np.allclose(high_K, weights_K, atol=2e-3)
    alone = {**few, "num_documents": [1], "width_K": np.ones(3)}
    low_K, high_K = document_interval(weights_K, bounds=bounds(), **alone)
    assert low_K.max() <= 0.1 and high_K.min() >= 0.9


def test_a_certain_part_changes_nothing_and_two_equal_ones_are_wider_by_the_root_of_two() -> None:
    weights_K = np.array([0.36])
    ends, certain = (np.array([0.25]), np.array([0.49])), (weights_K, weights_K)
    assert np.allclose(combined(weights_K, ends, certain), ends) and np.allclose(combined(weights_K, certain, ends), ends)
    low_K, high_K = combined(weights_K, ends, ends)
    assert np.sqrt([low_K, high_K]).ravel() == pytest.approx([0.6 - 0.1 * 2**0.5, 0.6 + 0.1 * 2**0.5])
