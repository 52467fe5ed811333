"""Bounds of the mixture: from recipe and production run to arrays, refused where they contradict each other, kept by a search."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmix_data.errors import InfeasibleBudgetError, MismatchError, RecipeError
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.load import load_recipe, parse_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.trajectory import read_trajectory
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from train.mixture.constraints import MixtureConstraints, constraints_of, stated_constraints
from train.mixture.optimizer import MixtureOptimizer
from train.search.plan import plan_search
from train.search.search import search

BLOCK = 16
TOKENS = {"wiki": 1600, "web": 16_000, "code": 3200, "c": 3200}


def catalog_of(tokens: dict[str, int] = TOKENS) -> Catalog:
    rows = [
        ShardRow(name, "train", f"{name}.tar", -(-count // BLOCK), count, count - 1, count - 1, 1, "<u2", False, 0, name)
        for name, count in tokens.items()
    ]
    return Catalog(Path(), CatalogInfo(BLOCK, 64, 0, "", sources=tuple(tokens)), rows)


def recipe_of(
    constraints: dict[str, Any], *, token_budget: int = 16, max_epochs: Any = 4, tokens: dict[str, int] = TOKENS
) -> Recipe:
    content = {
        "tokenizer": {"bytes": True},
        "sources": {name: {"files": f"{name}.txt"} for name in tokens},
        "shards": {"block_tokens": BLOCK},
        "target": {"sources": {next(iter(tokens)): 1}},
        "search": {"constraints": constraints},
        "emit": {"token_budget": token_budget, "max_epochs": max_epochs},
    }
    return parse_recipe(content)


def bounds_of(recipe: Recipe, catalog: Catalog) -> MixtureConstraints:
    return constraints_of(recipe.search.constraints, catalog, recipe.emit)


def refusal(constraints: dict[str, Any], **emit: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        bounds_of(recipe_of(constraints, **emit), catalog_of())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bounds_are_given_for_all_sources_or_by_name_and_pins_come_first() -> None:
    bounds = bounds_of(recipe_of({"floor": 0.05, "ceiling": {"web": 0.4}, "pinned": {"c": 0.01}}), catalog_of())
    assert bounds.floor_K.tolist() == [0.05, 0.05, 0.05, 0.01] and bounds.ceiling_K.tolist() == [1, 0.4, 1, 0.01]
    assert bounds.pinned_K.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "groups",
    [
        {"programs": {"sources": ["code", "c"], "max": 0.3}},
        {"programs": ["code", "c"], "max": 0.3},
        [{"programs": ["code", "c"], "max": 0.3}],
    ],
    ids=["full", "short", "list"],
)
def test_groups_are_written_in_full_or_short(groups: Any) -> None:
    (group,) = bounds_of(recipe_of({"groups": groups}), catalog_of()).groups.values()
    assert group.members.tolist() == [2, 3] and (group.least, group.most) == (0.0, 0.3)


def test_an_epoch_cap_is_the_share_of_production_that_emit_can_realise() -> None:
    """4 epochs of 1600 tokens are 0.4 of 16,000; of 1605 tokens at 1.5 epochs only whole blocks count."""
    bounds = bounds_of(recipe_of({"ceiling": {"code": 0.2}}, token_budget=16_000), catalog_of())
    assert bounds.ceiling_K.tolist() == [0.4, 1, 0.2, 0.8] and bounds.capped_K.tolist() == [True, False, False, True]
    odd = {**TOKENS, "wiki": 1605}
    bounds = bounds_of(recipe_of({}, token_budget=16_000, max_epochs={"wiki": 1.5}, tokens=odd), catalog_of(odd))
    assert bounds.ceiling_K[0] == (1605 + 800) / 16_000  # 1.5 epochs are 2407 tokens: a whole pass, and 50 blocks of 16


def test_epoch_caps_can_be_left_to_emit() -> None:
    bounds = bounds_of(recipe_of({"epoch_caps": False}, token_budget=10**9), catalog_of())
    assert bounds.is_free
    with pytest.raises(InfeasibleBudgetError, match=r"lower emit\.token_budget to 96000"):
        bounds_of(recipe_of({}, token_budget=10**9), catalog_of())


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ({"floor": 0.3}, "ask for 1.2 in all, more than 1 (the floor 0.3 of wiki, "),
        ({"ceiling": 0.2}, "allow 0.8 in all, less than 1 (the ceiling 0.2 of wiki, "),
        ({"floor": {"web": 0.5}, "ceiling": 0.4}, "the floor 0.5 of web is above the ceiling 0.4 of web; change one of the two"),
        (
            {"pinned": {"web": 0.7, "wiki": 0.4}},
            "ask for 1.1 in all, more than 1 (the pinned share 0.7 of web, the pinned share 0.4",
        ),
        (
            {"floor": 0.2, "groups": {"programs": ["code", "c"], "max": 0.3}},
            "groups.programs: its max 0.3 is less than the 0.4 its members need (the floor 0.2 of code, the floor 0.2 of c); raise",
        ),
        (
            {"ceiling": {"code": 0.1, "c": 0.1}, "groups": {"programs": ["code", "c"], "min": 0.3}},
            "groups.programs: its min 0.3 is more than the 0.2 its members may have (the ceiling 0.1 of code, the ceiling 0.1 of c)",
        ),
        (
            {"groups": [{"programs": ["code", "c"], "min": 0.6}, {"text": ["web", "wiki"], "min": 0.5}]},
            "ask for 1.1 in all, more than 1 (the min 0.6 of group programs, the min 0.5 of group text); lower some of these",
        ),
        (
            {"groups": [{"programs": ["code", "c"], "max": 0.4}, {"text": ["web", "wiki"], "max": 0.5}]},
            "allow 0.9 in all, less than 1 (the max 0.4 of group programs, the max 0.5 of group text); raise some of these",
        ),
        ({"floor": {"wki": 0.1}}, "search.constraints.floor: there is no source 'wki'; the sources are wiki, web, code, c"),
        ({"pinned": {"wki": 0.1}}, "search.constraints.pinned: there is no source 'wki'"),
        ({"groups": {"programs": ["code", "java"], "max": 0.1}}, "search.constraints.groups.programs: there is no source 'java'"),
        ({"groups": {"web": ["code", "c"], "max": 0.1}}, "groups: 'web' is the name of a source too"),
        (
            {"groups": [{"a": ["code"], "max": 0.1}, {"b": ["code"], "max": 0.1}]},
            "code is in a and in b; a source is in one group at most",
        ),
        ({"groups": {"a": ["code", "code"], "max": 0.1}}, "names one of code, code twice"),
        ({"groups": {"a": ["code"], "min": 0.2, "max": 0.1}}, "min 0.2 is above max 0.1"),
        ({"floor": {"web": 0.2}, "pinned": {"web": 0.1}}, "pinned.web 0.1 is outside its floor 0.2 and ceiling 1"),
    ],
)
def test_contradictions_are_refused_with_figures_and_remedy(constraints: dict[str, Any], expected: str) -> None:
    assert expected in refusal(constraints)


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ({"floor": {"wiki": 0.5}}, "the floor 0.5 of wiki is above the epoch cap 0.4 of wiki; lower emit.token_budget to 12800 "),
        (
            {"pinned": {"wiki": 0.8}},
            "the pinned share 0.8 of wiki is above the epoch cap 0.4 of wiki; lower emit.token_budget to 8000 ",
        ),
        (
            {"ceiling": {"web": 0.1, "code": 0.1, "c": 0.3}},
            "allow 0.9 in all, less than 1 (the ceiling 0.1 of web, the ceiling 0.1 of code, the ceiling 0.3 of c, the epoch cap 0.4 of "
            "wiki); lower emit.token_budget to 12800 (12.8K), or raise emit.max_epochs to 5",
        ),
        (
            {"groups": {"a": ["wiki", "c"], "min": 0.9}, "ceiling": {"c": 0.3}},
            "groups.a: its min 0.9 is more than the 0.7 its members may have (the ceiling 0.3 of c, the epoch cap 0.4 of wiki); lower "
            "emit.token_budget to 10666 (10.7K), or raise emit.max_epochs to 7, or lower the one or raise the other",
        ),
    ],
)
def test_epoch_caps_that_contradict_the_rest_come_with_the_budget_that_would_do(
    constraints: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(constraints, token_budget=16_000)


@given(st.integers(0, 100_000), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_budget_in_the_refusal_is_the_largest_that_works_and_so_do_the_epochs(seed: int, by_name: bool) -> None:
    rng = np.random.default_rng(seed)
    tokens = {name: int(count) for name, count in zip("abcd", rng.integers(50, 5000, 4), strict=True)}
    names = rng.permutation(list("abcd")).tolist()
    constraints = {"floor": {names[0]: round(float(rng.uniform(0, 0.5)), 3)}, "groups": {"g": names[1:3], "min": 0.3, "max": 0.4}}
    epochs: Any = dict.fromkeys("abcd", 2.0) if by_name else 2.0
    budget = int(rng.uniform(0.3, 1) * 2 * sum(tokens.values()))
    catalog = catalog_of(tokens)

    def attempt(token_budget: int, max_epochs: Any) -> str:
        try:
            bounds_of(recipe_of(constraints, token_budget=token_budget, max_epochs=max_epochs, tokens=tokens), catalog)
        except RecipeError as error:
            return str(error)
        except InfeasibleBudgetError:
            return "beyond all caps"
        return ""

    refused = attempt(budget, epochs)
    if not refused or refused == "beyond all caps":
        return
    largest = int(re.findall(r"emit.token_budget to (\d+)", refused)[0])
    assert not attempt(largest, epochs) and attempt(largest + 1, epochs)
    if by_name:
        factor = float(re.findall(r"([\d.]+)-fold", refused)[0])
        assert not attempt(budget, dict.fromkeys("abcd", math.ceil(2 * factor)))
    else:
        assert not attempt(budget, int(re.findall(r"max_epochs to (\d+)", refused)[0]))


def test_bounds_that_a_mixture_lies_at_are_named() -> None:
    constraints = {
        "floor": {"web": 0.1},
        "ceiling": {"code": 0.15},
        "groups": {"text": ["web", "wiki"], "max": 0.5, "min": 0.1},
    }
    bounds = bounds_of(recipe_of(constraints, token_budget=16_000), catalog_of())
    assert bounds.binding(np.array([0.4, 0.1, 0.15, 0.35])) == {
        "wiki": "epoch cap",
        "web": "floor",
        "code": "ceiling",
        "text": "group max",
    }
    assert bounds.binding(np.array([0.2, 0.2, 0.1, 0.5])) == {}


@pytest.mark.parametrize("rule", ["adam", "exponentiated_gradient"])
def test_every_move_ends_within_the_bounds_and_a_source_returns_from_its_floor(rule: Any) -> None:
    section = recipe_of({"floor": 0.02, "ceiling": {"web": 0.4}, "pinned": {"c": 0.1}}).search.constraints
    bounds = stated_constraints(section, sources=tuple(TOKENS))
    mixture = MixtureOptimizer(np.array([0.01, 0.97, 0.01, 0.01]), rule=rule, learning_rate=0.3, project=bounds.project)
    seen = [mixture.weights_K]
    for direction in (1.0, -1.0):
        for _ in range(60):
            mixture.step(direction * np.array([1.0, -2.0, 0.0, -3.0]))
            seen.append(mixture.weights_K)
    seen_UK = np.array(seen)
    assert np.allclose(seen_UK.sum(axis=1), 1, atol=1e-12) and np.allclose(seen_UK[:, 3], 0.1, atol=1e-9)
    assert (seen_UK >= bounds.floor_K - 1e-12).all() and (seen_UK <= bounds.ceiling_K + 1e-12).all()
    assert seen_UK[60, 0] == pytest.approx(0.02) and seen_UK[60, 1] == pytest.approx(0.4) and seen_UK[-1, 0] > 0.1


def test_a_power_concentrates_what_is_free_and_leaves_at_its_bound_what_would_have_more() -> None:
    """The cube alone would take the source at its ceiling below it, for others have more."""
    names = ["a", "b", "c", "d", "e", "f"]
    section = ConstraintsSection.model_validate(
        {"ceiling": {"a": 0.2}, "floor": {"f": 0.05}, "groups": {"pair": {"sources": ["c", "d"], "max": 0.3}}}
    )
    bounds = stated_constraints(section, sources=names)
    weights_K = np.array([0.2, 0.35, 0.2, 0.1, 0.1, 0.05])
    assert bounds.concentrated(weights_K, 1) == pytest.approx(weights_K)
    cubed_K = bounds.concentrated(weights_K, 3)
    assert cubed_K[[0, 5]].tolist() == [0.2, 0.05] and cubed_K[2:4].sum() == pytest.approx(0.3)
    assert cubed_K[2] / cubed_K[3] == pytest.approx(2**3) and cubed_K[1] / cubed_K[4] == pytest.approx(3.5**3)
    assert bounds.project(cubed_K) == pytest.approx(cubed_K, abs=1e-12)
    nothing_left = bounds.concentrated(np.array([0.2, 0.45, 0.3, 0.0, 0.0, 0.05]), 3)
    assert (nothing_left[[3, 4]] > 1e-5).all() and bounds.project(nothing_left) == pytest.approx(nothing_left, abs=1e-12)


def with_emit(recipe: Path, **emit: Any) -> Path:
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "emit": emit}, sort_keys=False))
    return recipe


def test_a_search_keeps_its_bounds_and_emit_realises_its_answer_within_a_block(planted_recipe: Callable[..., Path]) -> None:
    """`same` is wanted above all; two epochs of its 20,000 tokens are half of the production run."""
    path = planted_recipe(constraints={"floor": {"other": 0.05}, "pinned": {"noise": 0.02}}, token_budget=16 * 32 * 60)
    recipe = load_recipe(with_emit(path, token_budget=80_000, max_epochs=2))
    plan = plan_search(recipe)
    mixture, bounds = search(plan, quiet=True).mixture, plan.constraints
    rows = read_trajectory(plan.folder.trajectory)
    assert rows is not None
    rows_UK = rows.weights_UK
    assert np.allclose(rows_UK[:, 0], 0.02, atol=1e-9)
    assert (rows_UK >= bounds.floor_K - 1e-9).all() and (rows_UK <= bounds.ceiling_K + 1e-9).all()
    assert mixture.weights["noise"] == 0.02 and mixture.weights["same"] == bounds.ceiling_K[1]
    assert sum(mixture.weights.values()) == pytest.approx(1, abs=1e-12)
    assert mixture.binding == {"noise": "pinned", "same": "epoch cap"}
    assert all(low <= mixture.weights[name] <= high for name, (low, high) in mixture.certainty.interval.items())
    emit = recipe.required("emit")
    manifest = emit_manifest(plan.catalog, mixture, emit=emit, directory=recipe.paths.manifest.root)
    for source in manifest.sources:
        assert abs(source.num_tokens - source.weight * emit.token_budget) <= plan.catalog.info.block_tokens


def test_a_search_is_bound_to_the_production_run_only_where_that_bounds_it(planted_recipe: Callable[..., Path]) -> None:
    path = planted_recipe(token_budget=16 * 32 * 12)
    search(plan_search(load_recipe(path)), quiet=True)
    assert not search(plan_search(load_recipe(path, ["emit.token_budget=2000"])), quiet=True).did_work
    with pytest.raises(MismatchError, match=r"emit\.token_budget, emit\.max_epochs"):
        search(plan_search(load_recipe(path, ["emit.token_budget=100000"])), quiet=True)


def test_a_stated_start_is_checked_by_name(planted_recipe: Callable[..., Path]) -> None:
    path = planted_recipe(initial_weights={"noise": 3, "other": 1})
    with pytest.raises(RecipeError, match=r"search\.initial_weights: there is no source 'nosie'"):
        load_recipe(path, ["search.initial_weights={nosie: 1}"])
    with pytest.raises(RecipeError, match=r"give at least one source a share above 0"):
        load_recipe(path, ["search.initial_weights={noise: 0}"])
