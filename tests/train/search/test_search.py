"""Whole searches on planted corpora: what they find, what they leave, and how a stopped one goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmix_data.errors import FastmixError, MismatchError, RecipeError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.results.metrics_file import read_lines
from fastmix_data.results.mixture import Mixture
from fastmix_data.results.trajectory import read_trajectory
from train.recording.search_recorder import Told
from train.search.plan import SearchPlan, plan_search
from train.search.search import search

MakeRecipe = Callable[..., Path]
MakePlan = Callable[..., SearchPlan]
STEP = 16 * 32


@pytest.mark.parametrize("scope", ["all", "head"])
def test_planted_sources_are_separated(planted_plan: MakePlan, scope: str) -> None:
    mixture = search(planted_plan(hypergradient=scope), quiet=True).mixture
    found = mixture.weights
    assert found["same"] > 1 / 3 > max(found["noise"], found["other"])
    assert mixture.target.loss["unseen_end"] < mixture.target.loss["unseen_start"] - 0.5
    assert all(low <= found[name] <= high for name, (low, high) in mixture.certainty.interval.items())


def test_a_search_ends_with_its_budget_and_counts_what_it_read(planted_plan: MakePlan) -> None:
    """The reference code never stops: its check on max_step is commented out."""
    plan = planted_plan(token_budget=50 * STEP + 300)
    mixture = search(plan, quiet=True).mixture
    assert mixture.search.num_steps == 50
    assert mixture.search.num_tokens == 50 * STEP + 12 * 8 * 32  # 12 target batches
    trajectory = read_trajectory(plan.folder.trajectory)
    assert trajectory is not None and (trajectory.tokens_U / STEP).tolist() == list(range(4, 50, 4))


def start(recipe: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    """`python -m train.search`, in a process group of its own as a terminal makes one; what it prints goes to files beside the recipe."""
    with recipe.with_suffix(".out").open("wb") as output, recipe.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "train.search", str(recipe), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )


def wait_for(pattern: str, recipe: Path, process: subprocess.Popen[bytes]) -> None:
    """Until there is a file in the search's folder that is not there now."""
    folder = recipe.with_suffix("") / "search"
    before = set(folder.glob(pattern))
    while not set(folder.glob(pattern)) - before:
        assert process.poll() is None, recipe.with_suffix(".err").read_text()[-3000:]
        time.sleep(0.02)


def press_ctrl_c(recipe: Path, process: subprocess.Popen[bytes], *, saved: str = r"the search is saved at step \d+") -> str:
    """What the process has printed to stderr when it has ended."""
    os.killpg(process.pid, signal.SIGINT)
    code, errors = process.wait(timeout=300), recipe.with_suffix(".err").read_text()
    assert code == 2 and recipe.with_suffix(".out").read_bytes() == b"", errors[-3000:]
    assert re.search(f"stopped: {saved}", errors) and "the same command goes on" in errors
    assert "Traceback" not in errors
    return errors


def imported(errors: str) -> set[str]:
    """Top-level packages that a process imported, from what PYTHONPROFILEIMPORTTIME makes it print."""
    return {name.split(".")[0] for name in re.findall(r"^import time:[ \d|]+\| +(\S+)$", errors, re.MULTILINE)}


def content(mixture: Mixture) -> dict[str, Any]:
    """All that a mixture says but for how long it took."""
    record = mixture.model_dump()
    del record["search"]["seconds"]
    return record


def test_killed_and_stopped_a_search_comes_to_the_identical_end(planted_recipe: MakeRecipe) -> None:
    """One process is killed as it follows the scores and one stopped with ctrl-C among its trials before a third finishes; another search
    was left alone. The part of the data that is seen and the bounds must come back too, and what is told of it is told once.
    """
    settings: dict[str, Any] = {
        "initial_weights": "count",
        "token_budget": 480 * STEP,
        "checkpoint_interval": 8,
        "match_repetition": True,
        "constraints": {"floor": 0.1, "ceiling": {"same": 0.5}},
        "emit": {"token_budget": 20 * 480 * STEP, "max_epochs": 200},
    }
    recipes = [planted_recipe(name=name, **settings) for name in ("whole", "killed")]
    whole, killed = (plan_search(load_recipe(recipe)) for recipe in recipes)

    process = start(recipes[1], "--log", "tensorboard")
    wait_for("checkpoints/scores/*/index.json", recipes[1], process)
    time.sleep(np.random.default_rng().uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    with killed.folder.metrics.open("ab") as file:
        file.write(b'{"event":"update","step":')  # a line that was torn
    process = start(recipes[1], "--log", "tensorboard", PYTHONPROFILEIMPORTTIME="1")
    wait_for("trials.json", recipes[1], process)
    time.sleep(np.random.default_rng().uniform(0, 0.2))
    packages = imported(press_ctrl_c(recipes[1], process, saved=r"\d trials? of the search (is|are) saved"))
    assert {"torch", "deepspeed"} <= packages and not {"dask", "distributed"} & packages

    told = Told(sinks=("tensorboard",))
    expected, found = (search(plan, quiet=True, told=told).mixture for plan in (whole, killed))
    assert killed.folder.trajectory.read_bytes() == whole.folder.trajectory.read_bytes()
    assert content(found) == content(expected) and found.trials is not None
    assert not killed.folder.checkpoints.exists()
    log = killed.folder.rank_log(0).read_text()
    assert log.count("rank 0 of 1 on ") == 2 and "checkpoint of step 8" in log and "goes on from " in log
    assert_told_once(whole, killed)


WHEN = {"time", "tokens_per_second", "seconds_left", "peak_memory_bytes", "run", "gradient_norm"}


def assert_told_once(whole: SearchPlan, killed: SearchPlan) -> None:
    """Metrics and TensorBoard's events of a search that was killed and stopped say what those of one say that was left alone."""
    expected, found = (read_lines(plan.folder.metrics) for plan in (whole, killed))
    events = ("update", "trial")
    assert [without_times(line) for line in found if line["event"] in events] == [
        without_times(line) for line in expected if line["event"] in events
    ]
    assert [line["event"] for line in found].count("begin") == 3 and found[-1]["outcome"] == "finished"
    assert len({line["run"] for line in found if line["event"] == "begin"}) == 1
    assert all(line["tokens"] <= later["tokens"] for line, later in pairwise(line for line in found if line["event"] in events))
    trajectory = read_trajectory(whole.folder.trajectory)
    assert trajectory is not None
    updates = [line for line in expected if line["event"] == "update"]
    assert [line["tokens"] for line in updates] == trajectory.tokens_U.tolist()
    weights_UK = [[line["weights"][name] for name in trajectory.sources] for line in updates]
    assert np.allclose(weights_UK, trajectory.weights_UK, atol=1e-6)
    left_alone, gone_on = (EventAccumulator(str(plan.folder.tensorboard)).Reload() for plan in (whole, killed))
    assert set(gone_on.Tags()["scalars"]) == set(left_alone.Tags()["scalars"])
    for tag in ("search_weight/same", "search_train_loss", "search_trial_loss/start"):
        points = [[(event.step, event.value) for event in of.Scalars(tag)] for of in (left_alone, gone_on)]
        assert len(points[0]) >= 2 and points[0] == points[1]
    assert left_alone.Scalars("search_train_loss")[-1].step == updates[-1]["step"]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in WHEN}


def test_ctrl_c_stops_all_ranks_at_one_step_and_they_go_on_together(planted_recipe: MakeRecipe) -> None:
    recipes = [planted_recipe(name=name, checkpoint_interval=8, token_budget=40 * STEP) for name in ("one", "two")]
    one, two = (plan_search(load_recipe(recipe)) for recipe in recipes)
    process = start(recipes[1], "--nproc", "2")
    wait_for("checkpoints/scores/*/index.json", recipes[1], process)
    press_ctrl_c(recipes[1], process)
    assert search(two, num_ranks=2, quiet=True).mixture.search.num_steps == 40
    search(one, quiet=True)
    expected, found = (read_trajectory(plan.folder.trajectory) for plan in (one, two))
    assert expected is not None and found is not None
    # Looser than in `test_trajectory_invariance.py`: there are more steps, each from the rounding of the last.
    assert np.array_equal(found.tokens_U, expected.tokens_U) and np.allclose(found.weights_UK, expected.weights_UK, atol=1e-4)


# What `fastmix search` of version 0.1 wrote, as far as it matters: everything lay side by side.
FLAT_MIXTURE = {
    "schema_version": 1,
    "weights": {"noise": 0.2, "same": 0.5, "other": 0.3},
    "method": "fastmix (all parameters)",
    "interval": {"noise": [0.1, 0.3], "same": [0.4, 0.6], "other": [0.2, 0.4]},
    "seed": 0,
    "search_tokens": 8192,
    "catalog_hash": "0" * 64,
    "recipe_hash": "0" * 64,
}


def test_a_finished_search_is_left_alone_and_what_is_not_of_its_recipe_or_version_is_refused_or_replaced(
    planted_recipe: MakeRecipe,
) -> None:
    path = planted_recipe(token_budget=16 * STEP)
    plan, other = plan_search(load_recipe(path)), plan_search(load_recipe(path, ["training.seed=1"]))
    folder = plan.folder
    first = search(plan, quiet=True)
    trajectory, written = folder.trajectory.read_bytes(), folder.mixture.stat().st_mtime_ns
    again = search(plan)
    assert not again.did_work and "nothing to do" in again.message and again.mixture == first.mixture
    assert folder.mixture.stat().st_mtime_ns == written

    with pytest.raises(MismatchError, match=r"training\.seed.*--replace"):
        search(other)
    assert search(other, replace=True, quiet=True).mixture.weights != first.mixture.weights

    for unusable, remedy in (
        (json.dumps(FLAT_MIXTURE).encode(), r"mixture of schema version 1, this is 2; run `fastmix search --replace`"),
        (b'{"weights": {"noise": 0.2, ', "not valid JSON"),
    ):
        folder.mixture.write_bytes(unusable)
        with pytest.raises(FastmixError, match=remedy):
            search(plan)
        assert folder.mixture.read_bytes() == unusable
        replaced = search(plan, replace=True, quiet=True)
        # A process searches as well the second time: nothing of the searches in between is left in it.
        assert replaced.did_work and content(replaced.mixture) == content(first.mixture)
        assert folder.trajectory.read_bytes() == trajectory


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.target_batch=7", "search.target_batch: 7 cannot be divided over 2 ranks; use a multiple, for example 8"),
        ("training.global_batch=15", "training.global_batch: 15 cannot be divided over 2 ranks; use a multiple, for example 16"),
        ("training.micro_batch=3", "training.micro_batch: 3 does not divide"),
        ("proxy.config.vocab_size=50", "its vocabulary has 50 tokens, the shards' tokenizer 64"),
        ("proxy.config.hidden_sizes=50", "did you mean 'hidden_size'"),
        ("proxy.config.model_type=lama", "no model type 'lama'"),
        ("proxy.config.max_position_embeddings=16", "longer than the proxy's max_position_embeddings 16"),
        ("proxy={checkpoint: no/such/model}", "neither a folder with a transformers model nor a hub name"),
    ],
)
def test_what_cannot_work_is_refused_before_training(planted_plan: MakePlan, override: str, message: str) -> None:
    plan = planted_plan(override)
    with pytest.raises(RecipeError) as caught:
        search(plan, num_ranks=2)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not plan.folder.root.exists()


def test_a_checkpoint_of_another_vocabulary_is_refused_and_a_fitting_one_is_used(planted_plan: MakePlan, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for vocabulary in (5000, 64):
        config = AutoConfig.for_model(
            "llama", vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / f"model{vocabulary}")
    with pytest.raises(RecipeError, match=r"vocabulary has 5000 tokens.*own tokenizer"):
        search(planted_plan("proxy={checkpoint: model5000}"))
    mixture = search(planted_plan("proxy={checkpoint: model64}", token_budget=16 * STEP), quiet=True).mixture
    assert sum(mixture.weights.values()) == pytest.approx(1)


def test_a_diverging_proxy_is_reported(planted_plan: MakePlan) -> None:
    plan = planted_plan(learning_rate=1e30, gradient_clipping=0)
    with pytest.raises(FastmixError, match=r"loss is not finite at step \d+; lower training\.learning_rate"):
        search(plan, quiet=True)
    assert not plan.folder.mixture.exists()
