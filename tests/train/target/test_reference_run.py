"""Searches with a reference run on planted corpora: two targets that compete for the mixture."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastmix_data.artefacts import read_json
from fastmix_data.errors import Interrupted
from fastmix_data.recipe.file import load_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.target import TargetSection
from fastmix_data.results.mixture import Limit, Mixture
from fastmix_data.shards.catalog import load_catalog
from train.proxy.engine import process_group
from train.search.search import search
from train.target.balance import ReferenceLosses
from train.target.outcome import Comparison, broken_limits, outcome
from train.target.reference_run import reference_run
from train.target.target import Target

MakeRecipe = Callable[..., Path]
STEP = 16 * 32
UNEVEN = "target.sources={same: 8, other: 1}"
WORST_CASE, LIMIT = "target.worst_case=true", "target.not_worse_than=uniform"


def competing(planted_recipe: MakeRecipe, *options: str, name: str = "run", num_steps: int = 120, **settings: float) -> Recipe:
    # the rate that the constants of the two rules were measured at; twice as fast, the mixture swings in so short a search
    settings = {"weights_learning_rate": 0.15, **settings}
    path = planted_recipe(name=name, token_budget=STEP * num_steps, eval_sequences=32, **settings)
    return load_recipe(path, [UNEVEN, *options])


def trajectory(recipe: Recipe) -> dict[str, np.ndarray]:
    table = pq.read_table(recipe.paths.root / "search" / "trajectory.parquet")
    assert b'"targets":["same","other"]' in table.schema.metadata[b"fastmix"]
    return {name: np.array(table[name].to_pylist()) for name in ("weights", "target_weights", "target_losses", "target_loss")}


def excesses(mixture: Mixture, reference: Mixture) -> dict[str, float]:
    return {
        name: losses["search_end"] - reference.target_losses[name]["reference_end"]
        for name, losses in mixture.target_losses.items()
    }


@pytest.mark.parametrize(("target_memory", "least_shift"), [(0.0, 0.2), (0.8, 0.1)])  # with memory a limit overshoots less
def test_worst_case_and_limits_protect_the_target_that_plain_weights_sacrifice(
    planted_recipe: MakeRecipe, target_memory: float, least_shift: float
) -> None:
    recipes = {
        name: competing(planted_recipe, *options, name=name, target_memory=target_memory)
        for name, options in {"plain": (), "worst": (WORST_CASE,), "limit": (LIMIT,)}.items()
    }
    found = {name: search(recipe, quiet=True) for name, recipe in recipes.items()}
    plain, worst, limit = (found[name].mixture for name in ("plain", "worst", "limit"))
    sacrificed = excesses(plain, worst)
    assert max(sacrificed.values()) == sacrificed["other"] > 0.5
    assert max(excesses(worst, worst).values()) < 0.1
    assert worst.worst is not None and worst.worst.regret == max(excesses(worst, worst).values())
    assert worst.limits == {} and plain.worst is None and limit.worst is None
    assert limit.limits["other"].kept and not found["limit"].warnings
    assert plain.target_weights == pytest.approx({"same": 8 / 9, "other": 1 / 9})
    assert trajectory(recipes["limit"])["target_weights"][:, 1].max() > 0.5
    assert limit.weights["other"] > plain.weights["other"] + least_shift
    assert trajectory(recipes["plain"])["target_weights"] == pytest.approx(np.tile([8 / 9, 1 / 9], (28, 1)))
    # 7 measurements of 32 sequences of 2 targets by the reference and as many by the search, 30 target batches of 8
    assert plain.search_tokens == 120 * STEP + 30 * 8 * 32
    assert limit.search_tokens == plain.search_tokens + 120 * STEP + 2 * 7 * 2 * 32 * 32


def test_two_ranks_move_the_target_weights_as_one_does(planted_recipe: MakeRecipe) -> None:
    recipes = [competing(planted_recipe, LIMIT, name=name, num_steps=32) for name in ("one", "two")]
    for num_ranks, recipe in enumerate(recipes, start=1):
        search(recipe, num_ranks=num_ranks, quiet=True)
    one, two = (trajectory(recipe) for recipe in recipes)
    assert np.ptp(one["target_weights"][:, 0]) > 0.01
    for name, values in one.items():
        assert np.allclose(values, two[name], atol=2e-3), name


def test_a_resumed_search_goes_on_with_its_target_weights_and_its_reference(planted_recipe: MakeRecipe) -> None:
    whole, stopped = (
        competing(planted_recipe, LIMIT, name=name, num_steps=60, checkpoint_interval=8) for name in ("whole", "stopped")
    )
    search(whole, quiet=True)
    directory = stopped.paths.root / "search"

    def stop_after_a_checkpoint() -> None:
        while not (directory / "checkpoints" / "latest.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_after_a_checkpoint)
    stopper.start()
    with pytest.raises(Interrupted, match="the search is saved at step"):
        search(stopped, quiet=True)
    stopper.join()
    written = (directory / "reference.json").stat().st_mtime_ns
    resumed = search(stopped, quiet=True).mixture
    assert (directory / "reference.json").stat().st_mtime_ns == written
    expected, found = trajectory(whole), trajectory(stopped)
    assert all(np.array_equal(values, found[name]) for name, values in expected.items())
    assert np.ptp(expected["target_weights"][:, 0]) > 0.01
    assert resumed.search_tokens > 2 * 60 * STEP


def test_a_reference_run_is_made_once_and_a_stopped_one_leaves_nothing(planted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = competing(planted_recipe, LIMIT, num_steps=16)
    catalog, path = load_catalog(recipe.paths.catalog), tmp_path / "reference.json"
    target = Target.of_recipe(recipe, catalog, micro_batch=16)

    def make(*, recipe_hash: str, stop: bool) -> object:
        identity = {"recipe": recipe_hash, "number_of_ranks": 1}
        return reference_run(recipe, catalog, target=target, path=path, identity=identity, stop_asked=lambda: stop, quiet=True)

    with process_group(rank=0, world_size=1):
        with pytest.raises(Interrupted, match="ended at step 4 of 16; the same command starts it again"):
            make(recipe_hash="first", stop=True)
        assert not path.exists()
        first = make(recipe_hash="first", stop=False)
        assert make(recipe_hash="first", stop=True) == first
        with pytest.raises(Interrupted):
            make(recipe_hash="other", stop=True)


def test_a_search_that_ends_early_is_held_against_the_reference_after_as_many_steps(planted_recipe: MakeRecipe) -> None:
    settings = {"num_steps": 60, "update_interval": 1, "weights_warmup_steps": 1}
    recipe = competing(planted_recipe, LIMIT, "search.stop={tolerance: 0.9}", "search.weights_learning_rate=0.001", **settings)
    mixture = search(recipe, quiet=True).mixture
    assert 16 <= mixture.num_steps < 60
    saved = read_json(recipe.paths.root / "search" / "reference.json")
    expected = ReferenceLosses(**saved["losses"]).at(mixture.num_steps)
    assert [limit.reference for limit in mixture.limits.values()] == pytest.approx(expected.tolist())


def test_a_limit_that_was_not_kept_is_named_with_what_to_do() -> None:
    section = TargetSection(sources={"same": 1.0, "other": 1.0}, not_worse_than="uniform", limit_tolerance=0.05, worst_case=True)
    losses = {"same": {"search_end": 2.0}, "other": {"search_end": 3.0}}
    comparison = Comparison(np.array([2.0, 3.0]), np.array([1.96, 2.9]))
    fields = outcome(section, losses, comparison=comparison, weights_UG=np.array([[0.2, 0.8], [0.4, 0.6]]))
    mixture = Mixture(weights={"same": 1.0}, **fields)
    assert mixture.limits == {
        "same": Limit(reference=1.96, loss=2.0, kept=True),
        "other": Limit(reference=2.9, loss=3.0, kept=False),
    }
    assert mixture.worst is not None and (mixture.worst.target, round(mixture.worst.regret, 6)) == ("other", 0.1)
    assert mixture.target_loss == {"search_end": 2.5} and mixture.target_losses["other"]["reference_end"] == 2.9
    assert mixture.target_weights == pytest.approx({"same": 0.3, "other": 0.7})
    (warning,) = broken_limits(mixture)
    assert "other (3.000 nats, 0.100 above the reference run)" in warning and "same" not in warning
    assert "target.limit_tolerance" in warning
