from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.artefacts import read_json, write_json
from fastmix_data.errors import MismatchError
from fastmix_data.recipe.file import load_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Limit, Mixture, WorstTarget, load_mixture
from fastmix_data.shards.catalog import load_catalog
from train.search.search import search
from train.search.seeds import mean_of_searches, recipes_of_seeds

SHORT = 16 * 32 * 24
_SECONDS_OF_START = 12.5


def found(weights: dict[str, float], *, seed: int = 0, **fields: object) -> Mixture:
    interval = {name: (weight - 0.01, weight + 0.01) for name, weight in weights.items()}
    return Mixture.model_validate({"weights": weights, "interval": interval, "seed": seed, **fields})


def test_the_mean_of_two_searches_is_the_worked_one() -> None:
    first = found(
        {"a": 0.6, "b": 0.4},
        search_tokens=100,
        search_seconds=1.5,
        num_steps=10,
        stopped="used up",
        signal_to_noise={"a": 3, "b": -1},
        initial_weights={"a": 0.5, "b": 0.5},
        start_trials={"1": [5.0, 5.5], "3": [5.25, 6.0]},
    )
    second = found(
        {"a": 0.7, "b": 0.3},
        seed=1,
        search_tokens=100,
        search_seconds=2,
        num_steps=10,
        stopped="used up",
        signal_to_noise={"a": 1, "b": -1},
        initial_weights={"a": 0.75, "b": 0.25},
        start_trials={"1": [5.75, 5.5], "3": [5.0, 4.5]},
    )
    mean = mean_of_searches([first, second])
    assert mean.weights == pytest.approx({"a": 0.65, "b": 0.35})
    assert mean.interval["a"] == pytest.approx((0.64, 0.66))
    half = 6.3138 * (0.005) ** 0.5 * 1.5**0.5  # t of one degree of freedom, standard deviation, sqrt(1 + 1/2)
    assert mean.seed_interval["a"] == pytest.approx((max(0, 0.65 - half), min(1, 0.65 + half)), rel=1e-3)
    assert mean.seed_weights == {"0": first.weights, "1": second.weights}
    assert (mean.search_tokens, mean.search_seconds, mean.num_steps) == (200, 3.5, 20)
    assert mean.signal_to_noise["a"] == pytest.approx(4 / 2**0.5)
    assert mean.stopped == "each of 2 searches used up"
    assert mean.initial_weights == {"a": 0.625, "b": 0.375}
    assert mean.start_trials == {"1": [5.0, 5.5, 5.75, 5.5], "3": [5.25, 6.0, 5.0, 4.5]}


@given(st.integers(2, 6), st.integers(0, 10_000))
def test_a_mean_keeps_every_linear_bound_of_its_searches(num_seeds: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).dirichlet(np.ones(4), size=num_seeds)
    mean = mean_of_searches([found(dict(zip("abcd", row.tolist(), strict=True)), seed=s) for s, row in enumerate(drawn)])
    values = np.array(list(mean.weights.values()))
    assert values.sum() == pytest.approx(1)
    assert (drawn.min(axis=0) - 1e-12 <= values).all() and (values <= drawn.max(axis=0) + 1e-12).all()
    assert drawn[:, :2].sum(axis=1).min() - 1e-12 <= values[:2].sum() <= drawn[:, :2].sum(axis=1).max() + 1e-12
    assert all(0 <= low <= mean.weights[name] <= high <= 1 for name, (low, high) in mean.seed_interval.items())


def test_the_interval_over_seeds_holds_one_more_search_nine_times_in_ten() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        shares = 0.4 + 0.03 * rng.normal(size=5)
        low, high = mean_of_searches([found({"a": x, "b": 1 - x}, seed=s) for s, x in enumerate(shares[:4])]).seed_interval["a"]
        held += low <= shares[4] <= high
    assert 0.86 * 400 <= held <= 0.94 * 400


def test_sources_are_interchangeable_if_most_searches_say_so() -> None:
    weights = {"a": 0.4, "b": 0.3, "c": 0.3}
    notes = [[["a", "b"]], [["a", "b", "c"]], []]
    mean = mean_of_searches([found(weights, seed=s, interchangeable=groups) for s, groups in enumerate(notes)])
    assert mean.interchangeable == [["a", "b"]]


def test_limits_are_of_mean_losses_and_the_worst_target_is_that_of_any_search() -> None:
    weights = {"a": 1.0}
    losses = [(2.0, 1.9), (2.0, 2.05)]
    searches = [
        found(weights, seed=s, limits={"x": Limit(reference=r, loss=x, kept=x <= r)}, worst=WorstTarget(target="x", regret=x - r))
        for s, (r, x) in enumerate(losses)
    ]
    mean = mean_of_searches(searches)
    assert mean.limits["x"].kept and mean.limits["x"].loss == pytest.approx(1.975)
    assert mean.worst is not None and mean.worst.regret == pytest.approx(0.05)


def test_each_seed_has_a_folder_and_the_first_is_the_recipes(planted_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(planted_recipe(seed=5))
    recipes = recipes_of_seeds(recipe, 3)
    assert [one.search.seed for one in recipes] == [5, 6, 7]
    assert [one.search_path.relative_to(recipe.search_path).as_posix() for one in recipes] == ["seed-5", "seed-6", "seed-7"]
    assert recipe.search.seed == 5 and recipe.search_path.name == "search"


def test_seeds_are_added_reused_and_averaged(planted_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(
        planted_recipe(token_budget=SHORT, constraints={"floor": 0.05, "ceiling": {"same": 0.4}, "epoch_caps": False})
    )
    single = search(recipe, quiet=True).mixture
    assert not single.seed_weights
    mean = search(recipe, num_seeds=2, quiet=True).mixture
    assert mean.seed_weights["0"] == single.weights
    for name in single.weights:
        assert mean.weights[name] == pytest.approx(np.mean([weights[name] for weights in mean.seed_weights.values()]), abs=1e-9)
    assert mean.weights["same"] <= 0.4 + 1e-9 and min(mean.weights.values()) >= 0.05 - 1e-9
    assert mean.search_tokens == 2 * single.search_tokens
    second = (recipe.search_path / "seed-1" / "mixture.json").stat().st_mtime_ns
    assert (recipe.search_path / "trajectory.parquet").read_bytes() == (
        recipe.search_path / "seed-0" / "trajectory.parquet"
    ).read_bytes()

    for num_seeds in (None, 2):
        assert not search(recipe, num_seeds=num_seeds, quiet=True).did_work
    with pytest.raises(MismatchError, match=r"mean of 2 searches, and --seeds 1 asks for fewer.*--replace"):
        search(recipe, num_seeds=1, quiet=True)
    (recipe.search_path / "mixture.json").unlink()
    again = search(recipe, num_seeds=2, quiet=True).mixture
    assert again == mean and (recipe.search_path / "seed-1" / "mixture.json").stat().st_mtime_ns == second


def test_another_recipe_is_refused_and_replaced(planted_recipe: Callable[..., Path]) -> None:
    path = planted_recipe(token_budget=SHORT)
    search(load_recipe(path), quiet=True)
    other = load_recipe(path, ["search.target_batch=4"])
    with pytest.raises(MismatchError, match=r"search\.target_batch.*--replace"):
        search(other, num_seeds=2, quiet=True)
    replaced = search(other, num_seeds=2, replace=True, quiet=True).mixture
    assert set(replaced.seed_weights) == {"0", "1"}


def test_a_stopped_search_becomes_the_first_of_several(planted_recipe: Callable[..., Path]) -> None:
    """Its start and checkpoint go to the first seed's folder, and the result is that of a search that was never stopped."""
    whole = search(load_recipe(planted_recipe(name="whole", token_budget=SHORT)), quiet=True).mixture
    recipe = load_recipe(planted_recipe(name="stopped", token_budget=SHORT, checkpoint_interval=8))
    stop_after_a_checkpoint(recipe)
    mean = search(recipe, num_seeds=2, quiet=True).mixture
    assert mean.seed_weights["0"] == whole.weights
    assert read_json(recipe.search_path / "seed-0" / "start.json")["seconds"] == _SECONDS_OF_START
    assert not list(recipe.search_path.rglob("checkpoints"))


def stop_after_a_checkpoint(recipe: Recipe) -> None:
    """Leave what a search leaves that was interrupted at step 8."""
    from train.proxy.checkpoint import save_checkpoint
    from train.proxy.engine import process_group
    from train.search.artefacts import run_identity
    from train.search.search import build_run
    from train.search.start import stated_start
    from train.target.outcome import losses_by_target

    catalog = load_catalog(recipe.paths.catalog)
    with process_group(rank=0, world_size=1):
        start = replace(stated_start(recipe, catalog), seconds=_SECONDS_OF_START)
        write_json(recipe.search_path / "start.json", {"identity": run_identity(recipe, catalog, 1), **asdict(start)})
        run, engine, target = build_run(recipe, catalog, 1, start=start)
        losses = losses_by_target(target, engine, "start", num_sequences=recipe.search.eval_sequences)
        for _ in range(8):
            run.search_step()
        state = {"run": run.state_dict(), "losses": losses, "seconds": 0.0}
        folder = recipe.search_path / "checkpoints"
        folder.mkdir()
        save_checkpoint(
            folder, step=8, state=state, tensors=run.tensors(), identity=run_identity(recipe, catalog, 1), engine=engine
        )


def test_ranks_of_a_launcher_search_all_seeds_together(planted_recipe: Callable[..., Path]) -> None:
    path = planted_recipe(token_budget=16 * 32 * 16)
    launcher = ["torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [sys.executable, "-m", *launcher, "-m", "train.search", str(path), "--seeds", "2"]
    finished = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    mean = load_mixture(path.with_suffix("") / "search" / "mixture.json")
    assert mean.world_size == 2 and set(mean.seed_weights) == {"0", "1"}
