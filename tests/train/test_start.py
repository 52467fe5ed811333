"""Trials of the start: proxies trained from scratch decide how concentrated the counted mixture should be."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_ranks import alive
from planted_shards import BLOCK, write_split
from test_planted_truths import ALPHABET, BLEND, NUM_LANGUAGES, write_blend, write_language
from test_planted_truths import recipe as language_recipe

from fastmix_data.artefacts import read_json
from fastmix_data.catalog import Catalog, CatalogInfo, catalog_of_workdir
from fastmix_data.errors import Interrupted, RecipeError
from fastmix_data.recipe import NUM_TRIALS, Recipe
from fastmix_data.recipe_file import load_recipe, parse_recipe
from train.engine import process_group
from train.search import search
from train.start import Start, find_start, stated_start, to_the_power
from train.target import Target

MakeRecipe = Callable[..., Path]
STEP = 16 * 32
COUNTED: dict[str, Any] = {"initial_weights": "bigram", "token_budget": STEP * 360}
IDENTITY = {"recipe": "one"}


def found_start(
    recipe: Recipe, path: Path, *, stop_asked: Callable[[], bool] = lambda: False, identity: dict[str, str] | None = None
) -> Start:
    catalog = catalog_of_workdir(recipe.workdir_path)
    with process_group(rank=0, world_size=1):
        target = Target.of_recipe(recipe, catalog, micro_batch=16)
        return find_start(
            recipe, catalog, target=target, path=path, identity=identity or IDENTITY, stop_asked=stop_asked, quiet=True
        )


def by_mean(start: Start) -> str:
    return min(start.trial_losses, key=lambda power: float(np.mean(start.trial_losses[power])))


def test_the_power_with_the_lower_mean_loss_is_started_from_and_pulled_to(planted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(planted_recipe(**COUNTED), ["target.sources={same: 1, other: 3}"])
    start = found_start(recipe, tmp_path / "start.json")
    assert recipe.trial_steps == 30
    assert {power: len(losses) for power, losses in start.trial_losses.items()} == {"1": 3, "3": 3}
    assert (
        len(set(start.trial_losses["1"] + start.trial_losses["3"])) == 6
    )  # another seed in each pair, another mixture within it
    assert start.power == int(by_mean(start))
    assert start.prior == start.initial
    counted_K = np.array(start.counted)
    assert start.initial == pytest.approx(to_the_power(counted_K, start.power), abs=1e-9)
    measured = 2 * 16 * 32  # 16 sequences of 32 tokens of each of two targets
    assert start.num_tokens == NUM_TRIALS * (30 * STEP + measured)


def test_trials_leave_no_engine_and_no_memory_behind(planted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(planted_recipe(**COUNTED), ["deepspeed.zero_stage=3"])
    gc.collect()
    num_engines, num_bytes = alive()
    assert found_start(recipe, tmp_path / "start.json").num_trials == NUM_TRIALS
    gc.collect()
    assert alive()[0] <= num_engines
    assert alive()[1] <= num_bytes + 10_000


def test_a_prior_that_the_recipe_states_is_left_as_it_is(planted_recipe: MakeRecipe, tmp_path: Path) -> None:
    start = found_start(load_recipe(planted_recipe(**COUNTED, prior="uniform")), tmp_path / "start.json")
    assert start.prior == pytest.approx([1 / 3] * 3)
    assert start.num_trials == NUM_TRIALS


def test_trials_find_that_a_blend_of_sources_needs_all_of_them(tmp_path: Path) -> None:
    names = [f"language{k}" for k in range(NUM_LANGUAGES)]
    root = tmp_path / "run"
    rows = [write_split(root, name, "train", write_language(k, 60_000, seed=10 + k)) for k, name in enumerate(names)]
    rows.append(write_split(root, "blend", "valid", write_blend(BLEND, num_blocks=100)))
    vocab_size = NUM_LANGUAGES * ALPHABET + 1
    info = CatalogInfo(BLOCK, vocab_size, vocab_size - 1, "blend", sources=tuple(names), target_files=("blend",))
    Catalog(root, info, rows).save(root / "catalog.parquet")
    content = language_recipe("run", names, {"initial_weights": "bigram", "token_budget": 8 * STEP * 100})
    start = found_start(parse_recipe(content, name="blend").located(tmp_path), tmp_path / "start.json")
    assert all(once < cubed for once, cubed in zip(start.trial_losses["1"], start.trial_losses["3"], strict=True))
    assert start.power == 1
    assert start.initial == start.counted


def test_a_stopped_search_keeps_the_trials_it_has_made(planted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(planted_recipe(**COUNTED))
    whole = found_start(recipe, tmp_path / "whole.json")
    calls = 0

    def stop_in_the_fourth() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3 * (30 // 4)  # asked at every fourth step of 30

    path = tmp_path / "start.json"
    with pytest.raises(Interrupted, match="3 of 6 trials"):
        found_start(recipe, path, stop_asked=stop_in_the_fourth)
    assert [len(losses) for losses in read_json(path)["trial_losses"].values()] == [2, 1]
    resumed = found_start(recipe, path)
    assert resumed.trial_losses == whole.trial_losses
    assert (resumed.initial, resumed.prior, resumed.num_tokens) == (whole.initial, whole.prior, whole.num_tokens)
    # Finished ones are read, and those of another recipe are made anew.
    assert found_start(recipe, path, stop_asked=lambda: True) == resumed
    with pytest.raises(Interrupted, match="0 of 6 trials"):
        found_start(recipe, path, stop_asked=lambda: True, identity={"recipe": "another"})


def test_a_search_spends_its_budget_on_trials_and_the_rest(planted_recipe: MakeRecipe) -> None:
    path = planted_recipe(**COUNTED, update_interval=8)
    recipe = load_recipe(path)
    alone = search(recipe, quiet=True).mixture
    assert alone.num_steps == 360 - NUM_TRIALS * 30
    assert alone.search_tokens - 360 * STEP == pytest.approx(22 * 8 * 32 + NUM_TRIALS * 16 * 32)  # target tokens read
    start = read_json(recipe.search_path / "start.json")
    assert alone.start_trials == start["trial_losses"]
    assert list(alone.initial_weights.values()) == pytest.approx(start["initial"])
    together = search(recipe.searching_in(path.parent / "ranks"), num_ranks=2, quiet=True).mixture
    for power, losses in alone.start_trials.items():
        assert together.start_trials[power] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], 30),
        (["search.trial_fraction=0.8"], 48),
        (["search.trial_fraction=0"], 0),
        (["search.token_budget=183808"], 0),  # 359 steps
        (["search.initial_weights=uniform"], 0),
        (["search.initial_weights={same: 1}"], 0),
        (["target.not_worse_than=uniform"], 0),
    ],
)
def test_trials_are_made_where_they_can_tell_something(planted_recipe: MakeRecipe, options: list[str], steps: int) -> None:
    recipe = load_recipe(planted_recipe(**COUNTED), options)
    assert recipe.trial_steps == steps
    assert recipe.main_run.search.num_steps == recipe.search.num_steps - NUM_TRIALS * steps


def test_without_trials_a_search_starts_where_the_recipe_says(planted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(planted_recipe(**COUNTED, trial_fraction=0))
    start = found_start(recipe, tmp_path / "start.json")
    stated = stated_start(recipe, catalog_of_workdir(recipe.workdir_path))
    assert (start.initial, start.prior, start.trial_losses, start.num_tokens) == (stated.initial, stated.prior, {}, 0)


def test_trials_that_leave_no_update_to_the_search_are_refused(planted_recipe: MakeRecipe) -> None:
    path = planted_recipe(**COUNTED, trial_fraction=0.9, weights_warmup_steps=60)
    with pytest.raises(RecipeError, match=r"trial_fraction 0\.9 leaves 36 steps to the search"):
        load_recipe(path)
