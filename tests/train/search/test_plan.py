"""What a search goes by: which sections of the recipe it asks for, what its identity depends on, and how the budget is divided."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from planted_shards import WINDOW, write_split

from fastmix_data.errors import InputError, MismatchError, RecipeError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.shards.catalog import Catalog, load_catalog
from train.search.plan import SearchPlan, check_search, plan_search

MakeRecipe = Callable[..., Path]
MakePlan = Callable[..., SearchPlan]
STEP = 16 * 32
CAPPED = {"emit": {"token_budget": 70_000, "max_epochs": 2}}  # of 60,000 tokens in three sources: at most 4/7 of one


def without(path: Path, *sections: str) -> Path:
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if key not in sections}, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("target", "target: the recipe lacks this section, which the command needs; add target: {sources: {NAME: 1}}"),
        ("training", "training: the recipe lacks this section, which the command needs; add training: {token_budget: 2M}"),
    ],
)
def test_a_search_asks_for_target_and_training_before_it_looks_at_the_data(
    planted_recipe: MakeRecipe, section: str, message: str
) -> None:
    recipe = load_recipe(without(planted_recipe(), section), ["workdir=nowhere"])
    with pytest.raises(RecipeError) as caught:
        plan_search(recipe)
    assert str(caught.value) == message


def test_a_search_needs_no_emit_section_but_to_match_its_repetition(planted_recipe: MakeRecipe) -> None:
    plan = plan_search(load_recipe(without(planted_recipe(), "emit", "search")))
    assert plan.constraints.is_free and plan.sections.emit is None and plan.proxy.share_seen == 1
    recipe = load_recipe(without(planted_recipe(match_repetition=True), "emit"))
    with pytest.raises(RecipeError) as caught:
        plan_search(recipe)
    assert str(caught.value) == "emit: the recipe lacks this section, which the command needs; add emit: {token_budget: 100M}"


def test_shards_that_are_not_there_or_of_another_recipe_are_refused(planted_recipe: MakeRecipe) -> None:
    path = planted_recipe()
    with pytest.raises(MismatchError, match=r"there are no shards yet; run `fastmix preprocess` first"):
        plan_search(load_recipe(path, ["workdir=nowhere"]))
    for other in ("sources.more={files: more.txt}", "shards.block_tokens=128"):
        with pytest.raises(MismatchError, match=r"made from another recipe; run `fastmix preprocess --replace` first"):
            plan_search(load_recipe(path, [other]))


@pytest.mark.parametrize(
    ("settings", "override", "same"),
    [
        ({}, "emit.token_budget=2000", True),
        ({}, "emit.seed=1", True),
        ({}, "workdir=elsewhere", True),
        ({}, "training.seed=1", False),
        ({}, "search.target_batch=4", False),
        ({}, "target.sources.other=1", False),
        ({}, "proxy.config.hidden_size=16", False),
        ({}, "deepspeed.zero_stage=0", False),
        ({}, "training.micro_batch=4", False),
        ({}, "search.checkpoint_interval=8", True),
        (CAPPED, "emit.token_budget=60000", False),
        (CAPPED, "emit.max_epochs=3", False),
        (CAPPED, "emit.seed=1", True),
        ({"match_repetition": True}, "emit.token_budget=2000", True),  # no more than the search's: all is seen
        ({"match_repetition": True, "emit": {"token_budget": 10**6, "max_epochs": 50}}, "emit.token_budget=900000", False),
    ],
)
def test_a_search_is_another_one_if_a_section_it_goes_by_changes(
    planted_plan: MakePlan, tmp_path: Path, settings: dict[str, Any], override: str, same: bool
) -> None:
    (tmp_path / "elsewhere").symlink_to("run")
    before, after = planted_plan(**settings), planted_plan(override, **settings)
    assert (before.recipe_hash == after.recipe_hash) == same
    # One that was stopped goes on however it is cut and spread.
    assert (before.identity == after.identity) == (same or override in ("deepspeed.zero_stage=0", "training.micro_batch=4"))
    changed = after.sections.changed_keys(before.sections)
    assert len(changed) == (0 if same else 1) and all(override.startswith(key) for key in changed)


def test_each_seed_has_a_folder_and_the_first_is_the_recipes(planted_plan: MakePlan) -> None:
    plan = planted_plan(seed=5)
    plans = plan.of_seeds(3)
    assert [one.proxy.training.seed for one in plans] == [one.sections.training.seed for one in plans] == [5, 6, 7]
    assert [one.folder.root.relative_to(plan.folder.root).as_posix() for one in plans] == ["seed-5", "seed-6", "seed-7"]
    assert plans[0].recipe_hash == plan.recipe_hash and len({one.recipe_hash for one in plans}) == 3
    assert plan.proxy.training.seed == 5 and plan.folder.root.name == "search"


def test_a_plan_can_be_sent_to_other_processes(planted_plan: MakePlan) -> None:
    plan = planted_plan(constraints={"groups": {"others": {"sources": ["noise", "other"], "max": 0.5}}})
    sent: SearchPlan = pickle.loads(pickle.dumps(plan))
    assert sent.identity == plan.identity
    assert sent.constraints.groups["others"].most == 0.5


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], 240),
        (["search.trial_fraction=0.8"], 384),
        (["search.trial_fraction=0"], 0),
        (["training.token_budget=245248"], 0),  # 479 steps
        (["search.initial_weights=count"], 240),
        (["search.method=paper"], 0),
        (["search.method=paper", "search.trial_fraction=0.5"], 240),
        (["target.not_worse_than=uniform"], 0),
    ],
)
def test_trials_are_made_where_they_can_tell_something_and_leave_the_rest(
    planted_plan: MakePlan, options: list[str], steps: int
) -> None:
    plan = planted_plan(*options, token_budget=480 * STEP)
    assert plan.trial_steps == steps
    assert plan.main.training.num_steps == plan.proxy.training.num_steps - steps


def test_trials_that_leave_no_update_to_the_search_are_refused(planted_recipe: MakeRecipe) -> None:
    path = planted_recipe(token_budget=480 * STEP, trial_fraction=0.9, update_interval=60)
    with pytest.raises(RecipeError, match=r"trial_fraction 0\.9 leaves 48 steps to the scores, .*\(step 60\)"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("split", "loss_until", "message"),
    [
        ("train", 0, r"source same: none of its training tokens carries loss"),
        ("valid", 0, r"target same: the search half of its held-out text has no token that carries loss"),
        ("valid", 500, r"target same: the unseen half of its held-out text has no token that carries loss"),
    ],
)
def test_a_source_or_half_of_a_target_without_loss_tokens_is_refused(
    planted_recipe: MakeRecipe, split: str, loss_until: int, message: str
) -> None:
    recipe = load_recipe(planted_recipe())
    whole = load_catalog(recipe.paths.catalog)
    (recipe.paths.root / "shards").unlink()
    rows = []
    for row in whole.rows:
        end = loss_until if (row.source, row.split) == ("same", split) else None
        rows.append(write_split(recipe.paths.root, row.source, row.split, np.arange(2000) % 64, masked=True, loss_until=end))
    with pytest.raises(InputError, match=message):
        info = replace(whole.info, example_tokens=WINDOW)
        check_search(plan_search(recipe, Catalog(recipe.paths.root, info, rows)), num_ranks=1)
