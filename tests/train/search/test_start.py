"""Trials of the start: proxies trained from scratch decide how concentrated the counted mixture should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_languages import ALPHABET, BLEND, NUM_LANGUAGES, write_blend, write_language
from planted_languages import recipe as language_recipe
from planted_shards import BLOCK, write_split

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import Interrupted
from fastmix_data.recipe.load import parse_recipe
from fastmix_data.recipe.search import NUM_TRIALS
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from fastmix_data.workdir import SearchFolder
from train.proxy.engine import process_group
from train.search.plan import SearchPlan, plan_search
from train.search.search import search
from train.search.start import Start, find_start, stated_start
from train.target.target import Target

MakePlan = Callable[..., SearchPlan]
STEP = 16 * 32
COUNTED: dict[str, Any] = {"initial_weights": "bigram", "token_budget": STEP * 360}
IDENTITY = {"recipe": "one"}


def found_start(
    plan: SearchPlan, folder: Path, *, stop_asked: Callable[[], bool] = lambda: False, identity: dict[str, str] = IDENTITY
) -> Start:
    with process_group(rank=0, world_size=1):
        target = Target.of_plan(plan.proxy, plan.target, plan.search, num_ranks=1)
        elsewhere = plan.in_folder(SearchFolder(folder))
        return find_start(elsewhere, target=target, identity=identity, stop_asked=stop_asked, quiet=True)


def by_mean(start: Start) -> str:
    return min(start.trial_losses, key=lambda power: float(np.mean(start.trial_losses[power])))


def test_a_search_spends_its_budget_on_trials_and_starts_from_the_power_with_the_lower_mean_loss(planted_plan: MakePlan) -> None:
    plan = planted_plan("target.sources={same: 1, other: 3}", **COUNTED, update_interval=8)
    mixture = search(plan, quiet=True).mixture
    saved = read_json(plan.folder.start)
    assert saved.pop("identity") == plan.identity(1)
    start = Start(**saved)
    assert {power: len(losses) for power, losses in start.trial_losses.items()} == {"1": 3, "3": 3}
    # another seed in each pair, another mixture within it
    assert len(set(start.trial_losses["1"] + start.trial_losses["3"])) == 6
    assert start.power == int(by_mean(start))
    assert (
        start.prior
        == start.initial
        == pytest.approx(plan.constraints.concentrated(np.array(start.counted), start.power), abs=1e-5)
    )
    measured = 2 * 16 * 32  # 16 sequences of 32 tokens of each of two targets
    assert start.num_tokens == NUM_TRIALS * (30 * STEP + measured)
    assert mixture.start.trials == start.trial_losses
    assert list(mixture.start.weights.values()) == pytest.approx(start.initial)
    assert mixture.search.num_steps == 360 - NUM_TRIALS * 30
    assert mixture.search.num_tokens == 360 * STEP + NUM_TRIALS * measured + 22 * 8 * 32  # 22 updates with 8 target sequences


def test_trials_find_that_a_blend_of_sources_needs_all_of_them(tmp_path: Path) -> None:
    names = [f"language{k}" for k in range(NUM_LANGUAGES)]
    root = tmp_path / "run"
    rows = [write_split(root, name, "train", write_language(k, 60_000, seed=10 + k)) for k, name in enumerate(names)]
    rows.append(write_split(root, "blend", "valid", write_blend(BLEND, num_blocks=100)))
    vocab_size = NUM_LANGUAGES * ALPHABET + 1
    info = CatalogInfo(BLOCK, vocab_size, vocab_size - 1, "blend", sources=tuple(names), target_files=("blend",))
    catalog = Catalog(root, info, rows)
    content = language_recipe("run", names, {"initial_weights": "bigram", "token_budget": 8 * STEP * 100})
    start = found_start(plan_search(parse_recipe(content, name="blend").located(tmp_path), catalog), root)
    assert all(once < cubed for once, cubed in zip(start.trial_losses["1"], start.trial_losses["3"], strict=True))
    assert start.power == 1
    assert start.initial == start.counted


def test_a_stopped_search_keeps_the_trials_it_has_made(planted_plan: MakePlan, tmp_path: Path) -> None:
    # That the recipe states a prior changes no trial, and is left as it is.
    plan = planted_plan(**COUNTED, prior="uniform")
    whole = found_start(plan, tmp_path / "whole")
    assert whole.prior == pytest.approx([1 / 3] * 3)
    assert whole.num_trials == NUM_TRIALS
    calls = 0

    def stop_in_the_fourth() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3 * (30 // 4)  # asked at every fourth step of 30

    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted, match="3 of 6 trials of the search's start are saved; the same command goes on from there"):
        found_start(plan, folder, stop_asked=stop_in_the_fourth)
    assert [len(losses) for losses in read_json(folder / "start.json")["trial_losses"].values()] == [2, 1]
    resumed = found_start(plan, folder)
    assert resumed.trial_losses == whole.trial_losses
    assert (resumed.initial, resumed.prior, resumed.num_tokens) == (whole.initial, whole.prior, whole.num_tokens)
    # Finished ones are read, and those of another recipe are made anew.
    assert found_start(plan, folder, stop_asked=lambda: True) == resumed
    with pytest.raises(Interrupted, match="0 of 6 trials"):
        found_start(plan, folder, stop_asked=lambda: True, identity={"recipe": "another"})


def test_without_trials_a_search_starts_where_the_recipe_says(planted_plan: MakePlan, tmp_path: Path) -> None:
    plan = planted_plan(**COUNTED, trial_fraction=0)
    start, stated = found_start(plan, tmp_path), stated_start(plan)
    assert (start.initial, start.prior, start.trial_losses, start.num_tokens) == (stated.initial, stated.prior, {}, 0)
