"""Whole searches on planted corpora, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastmix_data.errors import MismatchError, RecipeError
from fastmix_data.recipe.file import load_recipe
from fastmix_data.results.mixture import load_mixture
from train.search.search import search

MakeRecipe = Callable[..., Path]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(recipe: Path, *options: str, ranks: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "train.search", str(recipe), *options]
    if ranks > 1:
        command[1:2] = [
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={ranks}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
            "-m",
        ]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], *, code: int = 0) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors[-3000:]
    return errors


def trajectory(recipe: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(recipe.with_suffix("") / "search" / "trajectory.parquet")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def weights(recipe: Path) -> dict[str, float]:
    return load_mixture(recipe.with_suffix("") / "search" / "mixture.json").weights


@pytest.mark.parametrize("scope", ["all", "head"])
def test_planted_sources_are_separated(planted_recipe: MakeRecipe, scope: str) -> None:
    recipe = planted_recipe(hypergradient=scope)
    finish(start(recipe))
    found = weights(recipe)
    assert found["same"] > 1 / 3 > max(found["noise"], found["other"])
    mixture = load_mixture(recipe.with_suffix("") / "search" / "mixture.json")
    assert mixture.target_loss["unseen_end"] < mixture.target_loss["unseen_start"] - 0.5
    assert all(low <= mixture.weights[name] <= high for name, (low, high) in mixture.interval.items())


def test_scores_move_a_pulled_mixture_only_as_far_as_they_are_known_to_be_more_than_noise(planted_recipe: MakeRecipe) -> None:
    """One batch per source says nothing of the noise, so the first update moves nothing; later ones tell these sources apart."""
    one = {"prior_strength": 1.0, "update_interval": 16, "weights_warmup_steps": 0, "average_fraction": 1.0}

    def found(**changes: object) -> dict[str, float]:
        recipe = load_recipe(planted_recipe(**{"token_budget": 16 * 32 * 16, **one, **changes}))
        return search(recipe, replace=True, quiet=True).mixture.weights

    assert all(weight == pytest.approx(1 / 3, abs=1e-12) for weight in found().values())
    assert max(found(shrink_scores=False).values()) > 0.36
    many = found(token_budget=16 * 32 * 160, update_interval=4)
    assert many["same"] > 0.45 and many["noise"] < 0.25


def test_a_search_ends_with_its_budget_and_counts_what_it_read(planted_recipe: MakeRecipe) -> None:
    """The reference code never stops: its check on max_step is commented out."""
    recipe = planted_recipe(token_budget=16 * 32 * 50 + 300)
    finish(start(recipe))
    mixture = load_mixture(recipe.with_suffix("") / "search" / "mixture.json")
    assert mixture.num_steps == 50
    assert mixture.search_tokens == 50 * 16 * 32 + 12 * 8 * 32  # 12 target batches
    assert trajectory(recipe)["step"].tolist() == list(range(12, 50, 4))


def test_kill_and_resume_gives_the_identical_trajectory(planted_recipe: MakeRecipe) -> None:
    pulled = {"checkpoint_interval": 8, "prior_strength": 0.1}  # with a pull scores are shrunk by what earlier updates saw
    whole, killed = planted_recipe(name="whole", **pulled), planted_recipe(name="killed", **pulled)
    finish(start(whole))
    rng = np.random.default_rng()
    pointer = killed.with_suffix("") / "search" / "checkpoints" / "latest.json"
    for _ in range(2):
        process = start(killed)
        wait_for_checkpoint(pointer, process)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(killed))
    expected, found = trajectory(whole), trajectory(killed)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert weights(whole) == weights(killed)


def wait_for_checkpoint(pointer: Path, process: subprocess.Popen[str]) -> None:
    """Until a checkpoint newer than the one there is."""
    before = pointer.read_bytes() if pointer.exists() else b""
    while process.poll() is None and (not pointer.exists() or pointer.read_bytes() == before):
        time.sleep(0.02)


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_saves_and_the_same_command_goes_on(planted_recipe: MakeRecipe, ranks: int) -> None:
    recipe = planted_recipe(checkpoint_interval=8)
    script = "import sys; from pipelines.cli import main; main()"
    command = [sys.executable, "-c", script, "search", str(recipe), "--nproc", str(ranks)]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_checkpoint(recipe.with_suffix("") / "search" / "checkpoints" / "latest.json", process)
    os.killpg(process.pid, signal.SIGINT)
    errors = finish(process, code=2)
    assert "stopped: the search is saved at step" in errors and "the same command goes on" in errors and "Traceback" not in errors
    resumed = subprocess.run([*command, "--json"], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0 and json.loads(resumed.stdout)["num_steps"] == 120


def test_ranks_and_accumulation_give_the_same_trajectory(planted_recipe: MakeRecipe) -> None:
    """Under FSDP the reference code multiplies local shards and never reduces; its accumulation loses gradients."""
    runs: dict[str, tuple[int, dict[str, Any]]] = {
        "one": (1, {}),
        "two": (2, {}),
        "accumulated": (1, {"micro_batch": 4}),
        "four": (4, {"micro_batch": 2}),
    }
    found = {}
    for name, (ranks, options) in runs.items():
        recipe = planted_recipe(name=name, sources=("noise", "same", "masked"), token_budget=16 * 32 * 40, **options)
        finish(start(recipe, ranks=ranks))
        found[name] = trajectory(recipe)
    for name in runs:
        assert np.allclose(found[name]["weights"], found["one"]["weights"], atol=2e-3), name
        assert np.allclose(found[name]["target_loss"], found["one"]["target_loss"], atol=2e-3), name
        assert np.allclose(found[name]["train_loss"], found["one"]["train_loss"], atol=2e-3), name


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_stages_give_the_same_trajectory_on_two_ranks(planted_recipe: MakeRecipe, stage: int) -> None:
    found = {}
    for name, zero_stage in (("first", 1), ("second", stage)):
        recipe = planted_recipe(name=name, token_budget=16 * 32 * 24)
        finish(start(recipe, "--set", f"deepspeed.zero_stage={zero_stage}", ranks=2))
        found[name] = trajectory(recipe)
    assert np.allclose(found["first"]["weights"], found["second"]["weights"], atol=2e-3)


def test_one_process_can_search_again_and_again(planted_recipe: MakeRecipe) -> None:
    path = planted_recipe(token_budget=16 * 32 * 16)
    script = (
        "import sys; from pathlib import Path; from fastmix_data.recipe.file import load_recipe; from train.search.search import search\n"
        "for seed in (0, 1, 0): r = search(load_recipe(Path(sys.argv[1]), [f'search.seed={seed}']), replace=True, quiet=True)\n"
        "print(r.did_work)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert finished.stdout.strip() == "True", finished.stderr[-3000:]
    again = weights(path)
    finish(start(path, "--replace", "--set", "search.seed=1"))
    finish(start(path, "--replace"))
    assert weights(path) == again


def test_a_finished_search_is_left_alone_and_another_recipe_is_refused(planted_recipe: MakeRecipe) -> None:
    path = planted_recipe(token_budget=16 * 32 * 16)
    finish(start(path))
    before = (path.with_suffix("") / "search" / "mixture.json").stat().st_mtime_ns
    again = search(load_recipe(path))
    assert not again.did_work and "nothing to do" in again.message
    assert (path.with_suffix("") / "search" / "mixture.json").stat().st_mtime_ns == before
    with pytest.raises(MismatchError, match=r"search\.seed.*--replace"):
        search(load_recipe(path, ["search.seed=1"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.target_batch=7", "search.target_batch 7 cannot be divided over 2 ranks; use a multiple, for example 8"),
        ("search.global_batch=15", "search.global_batch 15 cannot be divided over 2 ranks"),
        ("search.micro_batch=3", "search.micro_batch 3 does not divide"),
        ("proxy.config.vocab_size=50", "its vocabulary has 50 tokens, the shards' tokenizer 64"),
        ("proxy.config.hidden_sizes=50", "did you mean 'hidden_size'"),
        ("proxy.config.model_type=lama", "no model type 'lama'"),
        ("proxy.config.max_position_embeddings=16", "longer than the proxy's max_position_embeddings 16"),
        ("proxy={checkpoint: no/such}", "neither a folder with a transformers model nor a hub name"),
    ],
)
def test_what_cannot_work_is_refused_before_training(planted_recipe: MakeRecipe, override: str, message: str) -> None:
    path = planted_recipe()
    with pytest.raises(RecipeError) as caught:
        search(load_recipe(path, [override]), num_ranks=2)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (path.with_suffix("") / "search").exists()


def test_a_checkpoint_of_another_vocabulary_is_refused_and_a_fitting_one_is_used(
    planted_recipe: MakeRecipe, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = planted_recipe(token_budget=16 * 32 * 16)
    for vocabulary in (5000, 64):
        config = AutoConfig.for_model(
            "llama", vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / f"model{vocabulary}")
    with pytest.raises(RecipeError, match=r"vocabulary has 5000 tokens.*own tokenizer"):
        search(load_recipe(path, ["proxy={checkpoint: model5000}"]))
    finish(start(path, "--set", "proxy={checkpoint: model64}"))
    assert sum(weights(path).values()) == pytest.approx(1)


def test_a_diverging_proxy_is_reported(planted_recipe: MakeRecipe) -> None:
    recipe = planted_recipe(learning_rate=1e30, gradient_clipping=0)
    errors = finish(start(recipe), code=2)
    assert "lower search.learning_rate" in errors and not (recipe.with_suffix("") / "search" / "mixture.json").exists()
