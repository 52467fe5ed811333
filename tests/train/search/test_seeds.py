"""Several searches that differ in their seed: what they come to together, and what is kept of one that lies there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from stopped_search import stop_after_a_checkpoint

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import MismatchError
from fastmix_data.results.metrics_file import read_lines
from fastmix_data.results.mixture import Limit, Mixture, WorstTarget, load_mixture
from fastmix_data.shards.catalog import Catalog
from fastmix_data.workdir import SearchFolder
from train.search.plan import SearchPlan
from train.search.search import search
from train.search.seeds import mean_of_searches

MakePlan = Callable[..., SearchPlan]
STEP = 16 * 32


def found(
    weights: dict[str, float],
    *,
    seed: int = 0,
    certainty: dict[str, Any] | None = None,
    search: dict[str, Any] | None = None,
    **records: Any,
) -> Mixture:
    interval = {name: (weight - 0.01, weight + 0.01) for name, weight in weights.items()}
    certainty, search = {"interval": interval, **(certainty or {})}, {"seed": seed, **(search or {})}
    return Mixture.model_validate({"weights": weights, "certainty": certainty, "search": search, **records})


def test_the_mean_of_two_searches_is_the_worked_one() -> None:
    cost = {"num_tokens": 100, "num_steps": 10, "num_updates": 3, "stopped": "used up"}
    first = found(
        {"a": 0.6, "b": 0.4},
        search={"seconds": 1.5, **cost},
        certainty={"signal_to_noise": {"a": 3, "b": -1}},
        start={"weights": {"a": 0.5, "b": 0.5}},
        target={"loss": {"search_end": 2.0}, "losses": {"x": {"search_end": 2.0}}, "weights": {"x": 1.0}},
    )
    second = found(
        {"a": 0.7, "b": 0.3},
        seed=1,
        search={"seconds": 2, **cost},
        certainty={"signal_to_noise": {"a": 1, "b": -1}},
        start={"weights": {"a": 0.75, "b": 0.25}},
        target={"loss": {"search_end": 3.0}, "losses": {"x": {"search_end": 3.0}}, "weights": {"x": 1.0}},
    )
    mean = mean_of_searches([first, second])
    assert mean.weights == pytest.approx({"a": 0.65, "b": 0.35})
    certainty = mean.certainty
    assert certainty.interval["a"] == pytest.approx((0.64, 0.66))
    half = 6.3138 * (0.005) ** 0.5 * 1.5**0.5  # t of one degree of freedom, standard deviation, sqrt(1 + 1/2)
    assert certainty.seed_interval["a"] == pytest.approx((max(0, 0.65 - half), min(1, 0.65 + half)), rel=1e-3)
    assert certainty.seed_weights == {"0": first.weights, "1": second.weights} and certainty.num_searches == 2
    assert certainty.signal_to_noise["a"] == pytest.approx(4 / 2**0.5)
    record = mean.search
    assert (record.num_tokens, record.seconds, record.num_steps, record.num_updates) == (200, 3.5, 20, 6)
    assert record.stopped == "each of 2 searches used up" and record.seed == 0
    assert mean.start.weights == {"a": 0.625, "b": 0.375}
    assert mean.trials is None
    assert mean.target.loss == {"search_end": 2.5} == mean.target.losses["x"] and mean.target.weights == {"x": 1.0}


def tried(winner: str, ahead: dict[str, tuple[float, float, float]], *, share: float, loss: float) -> dict[str, Any]:
    names = [winner, *ahead]
    return {
        "mixtures": {name: {"a": share, "b": 1 - share} for name in names},
        "losses": {name: {"0": loss, "1": loss} for name in names},
        "tokens": {"0": 10, "1": 10},
        "probability": {name: 0.8 if name == winner else 0.2 / len(ahead) for name in names},
        "winner": winner,
        "ahead": ahead,
        "noise": loss / 100,
        "exponent": share,
        "horizon_tokens": 50,
    }


def test_trials_of_several_searches_are_put_together() -> None:
    """The winner of most searches, held against each other mixture that all of them tried: in the last search it came 0.1 behind."""
    records = [
        tried("scores", {"start": (0.2, 0.1, 0.3), "proportional": (0.5, 0.4, 0.6)}, share=0.6, loss=3.0),
        tried("scores", {"start": (0.4, 0.3, 0.5)}, share=0.7, loss=4.0),
        tried("start", {"scores": (0.1, -0.1, 0.3), "proportional": (0.3, 0.1, 0.5)}, share=0.8, loss=4.0),
    ]
    mean = mean_of_searches([found({"a": 0.6, "b": 0.4}, seed=seed, trials=record) for seed, record in enumerate(records)]).trials
    assert mean is not None and mean.winner == "scores" and list(mean.mixtures) == ["scores", "start"]
    assert mean.mixtures["start"] == pytest.approx({"a": 0.7, "b": 0.3})
    assert mean.losses["start"] == {"0:0": 3.0, "0:1": 3.0, "1:0": 4.0, "1:1": 4.0, "2:0": 4.0, "2:1": 4.0}
    assert mean.num_pairs("start", "scores") == 6 and mean.tokens["2:1"] == 10
    half = (0.1**2 + 0.1**2 + 0.2**2) ** 0.5 / 3
    assert mean.ahead["start"] == pytest.approx(((0.2 + 0.4 - 0.1) / 3, 0.5 / 3 - half, 0.5 / 3 + half))
    assert mean.probability == pytest.approx({"scores": (0.8 + 0.8 + 0.1) / 3, "start": (0.1 + 0.2 + 0.8) / 3})
    assert mean.noise == pytest.approx(((9 + 16 + 16) / 3) ** 0.5 / 100) and mean.exponent == pytest.approx(0.7)


@given(st.integers(2, 6), st.integers(0, 10_000))
def test_a_mean_keeps_every_linear_bound_of_its_searches(num_seeds: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).dirichlet(np.ones(4), size=num_seeds)
    mean = mean_of_searches([found(dict(zip("abcd", row.tolist(), strict=True)), seed=s) for s, row in enumerate(drawn)])
    values = np.array(list(mean.weights.values()))
    assert values.sum() == pytest.approx(1)
    assert (drawn.min(axis=0) - 1e-12 <= values).all() and (values <= drawn.max(axis=0) + 1e-12).all()
    assert drawn[:, :2].sum(axis=1).min() - 1e-12 <= values[:2].sum() <= drawn[:, :2].sum(axis=1).max() + 1e-12
    intervals = mean.certainty.seed_interval
    assert all(0 <= low <= mean.weights[name] <= high <= 1 for name, (low, high) in intervals.items())


def test_the_interval_over_seeds_holds_one_more_search_nine_times_in_ten() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        shares = 0.4 + 0.03 * rng.normal(size=5)
        mean = mean_of_searches([found({"a": x, "b": 1 - x}, seed=s) for s, x in enumerate(shares[:4])])
        low, high = mean.certainty.seed_interval["a"]
        held += low <= shares[4] <= high
    assert 0.86 * 400 <= held <= 0.94 * 400


def test_the_interval_over_seeds_is_over_other_documents_too() -> None:
    certainty = {"document_interval": {"a": (0.1, 0.9), "b": (0.1, 0.9)}, "num_documents": {"x": 4}}
    mean = mean_of_searches([found({"a": 0.5, "b": 0.5}, seed=seed, certainty=certainty) for seed in range(3)]).certainty
    assert mean.seed_interval["a"] == pytest.approx((0.1, 0.9)) and mean.num_documents == {"x": 4}
    assert mean.document_interval["b"] == pytest.approx((0.1, 0.9))


def test_sources_are_interchangeable_if_most_searches_say_so() -> None:
    weights = {"a": 0.4, "b": 0.3, "c": 0.3}
    notes = [[["a", "b"]], [["a", "b", "c"]], []]
    mean = mean_of_searches([found(weights, seed=s, certainty={"interchangeable": groups}) for s, groups in enumerate(notes)])
    assert mean.certainty.interchangeable == [["a", "b"]]


def test_limits_are_of_mean_losses_and_the_worst_target_is_that_of_any_search() -> None:
    losses = [(2.0, 1.9), (2.0, 2.05)]
    searches = [
        found(
            {"a": 1.0},
            seed=seed,
            target={
                "limits": {"x": Limit(reference=reference, loss=loss, kept=loss <= reference)},
                "worst": WorstTarget(target="x", regret=loss - reference),
            },
        )
        for seed, (reference, loss) in enumerate(losses)
    ]
    target = mean_of_searches(searches).target
    assert target.limits["x"].kept and target.limits["x"].loss == pytest.approx(1.975)
    assert target.worst is not None and target.worst.regret == pytest.approx(0.05)


def test_seeds_are_added_reused_averaged_and_replaced_for_another_recipe(planted_plan: MakePlan) -> None:
    settings: dict[str, Any] = {
        "token_budget": 24 * STEP,
        "constraints": {"floor": 0.05, "ceiling": {"same": 0.4}, "epoch_caps": False},
    }
    plan = planted_plan(**settings)
    first, second = (one.folder for one in plan.of_seeds(2))
    single = search(plan, quiet=True).mixture
    assert not single.certainty.seed_weights
    mean = search(plan, num_seeds=2, quiet=True).mixture
    seed_weights = mean.certainty.seed_weights
    assert seed_weights["0"] == single.weights
    for name in single.weights:
        assert mean.weights[name] == pytest.approx(np.mean([weights[name] for weights in seed_weights.values()]), abs=1e-9)
    assert mean.weights["same"] <= 0.4 + 1e-9 and min(mean.weights.values()) >= 0.05 - 1e-9
    assert mean.search.num_tokens == 2 * single.search.num_tokens
    written = second.mixture.stat().st_mtime_ns
    assert plan.folder.trajectory.read_bytes() == first.trajectory.read_bytes()

    for num_seeds in (None, 2):
        assert not search(plan, num_seeds=num_seeds, quiet=True).did_work
    with pytest.raises(MismatchError, match=r"mean of 2 searches, and --seeds 1 asks for fewer.*--replace"):
        search(plan, num_seeds=1, quiet=True)
    plan.folder.mixture.unlink()
    again = search(plan, num_seeds=2, quiet=True).mixture
    assert again == mean and second.mixture.stat().st_mtime_ns == written

    other = planted_plan("search.target_batch=4", **settings)
    with pytest.raises(MismatchError, match=r"search\.target_batch.*--replace"):
        search(other, num_seeds=2, quiet=True)
    replaced = search(other, num_seeds=2, replace=True, quiet=True).mixture
    assert set(replaced.certainty.seed_weights) == {"0", "1"} and replaced.weights != mean.weights
    assert load_mixture(second.mixture).made_from.recipe == other.of_seeds(2)[1].recipe_hash


def test_the_interval_of_one_search_holds_what_other_seeds_find(planted_plan: MakePlan) -> None:
    """Of a target of many documents, so that theirs does not cover everything: 90% is what is said, counted over pairs of seeds."""
    shares = "target.sources={same: 2, other: 1}"
    plan = planted_plan(shares, global_batch=4, token_budget=4 * 32 * 240, average_fraction=1.0, trial_fraction=0.0)
    rows = [replace(row, num_documents=row.num_tokens // 64) for row in plan.catalog.rows]
    catalog = Catalog(plan.catalog.root, plan.catalog.info, rows)
    plan = replace(plan, proxy=replace(plan.proxy, catalog=catalog))
    search(plan, num_seeds=5, quiet=True)
    mixtures = [load_mixture(one.folder.mixture) for one in plan.of_seeds(5)]
    held, widths = [], []
    for one, other in permutations(mixtures, 2):
        for name, (low, high) in one.certainty.interval.items():
            held.append(low <= other.weights[name] <= high)
            widths.append(high - low)
    assert np.mean(held) >= 0.85 and np.mean(widths) < 0.25
    assert np.ptp([mixture.weights["same"] for mixture in mixtures]) > 0.01


def test_a_stopped_search_becomes_the_first_of_several(planted_plan: MakePlan) -> None:
    """Its trials and checkpoint go to the first seed's folder, and the result is that of a search that was never stopped."""
    whole = search(planted_plan(name="whole", token_budget=24 * STEP), quiet=True).mixture
    plan = planted_plan(name="stopped", token_budget=24 * STEP, checkpoint_interval=8)
    stop_after_a_checkpoint(plan)
    write_json(plan.folder.trials, {"identity": plan.identity, "candidates": {}})
    mean = search(plan, num_seeds=2, quiet=True).mixture
    assert mean.certainty.seed_weights["0"] == whole.weights
    assert read_json(plan.folder.of_seed(0).trials) == read_json(plan.folder.trials)
    assert not list(plan.folder.root.rglob("checkpoints"))
    assert not plan.folder.metrics.exists() and plan.folder.running().root == plan.folder.of_seed(1).root
    for seed in (0, 1):
        lines = read_lines(plan.folder.of_seed(seed).metrics)
        steps = [line["step"] for line in lines if line["event"] == "update"]
        assert steps == list(range(4, steps[-1] + 1, 4)) and lines[0]["seed"] == seed and lines[-1]["outcome"] == "finished"


def test_ranks_of_a_launcher_search_all_seeds_together_and_one_of_them_speaks(planted_recipe: Callable[..., Path]) -> None:
    path = planted_recipe(token_budget=16 * STEP)
    launcher = ["torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [sys.executable, "-m", *launcher, "-m", "train.search", str(path), "--seeds", "2", "--set", "training.seed=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    folder = SearchFolder(path.with_suffix("") / "search")
    mean = load_mixture(folder.mixture)
    for rank in (0, 1):
        log = folder.rank_log(rank).read_text()
        assert f"rank {rank} of 2 on " in log and log.count("finished: ") == (2 if rank == 0 else 0) and log.endswith(": done\n")
    assert mean.search.world_size == 2 and set(mean.certainty.seed_weights) == {"4", "5"}
    printed = json.loads(finished.stdout)  # one object, not one for each rank
    assert printed["did_work"] and printed["weights"] == mean.weights


def test_what_is_wrong_with_a_rank_that_a_launcher_started_is_one_line_and_its_log_has_the_rest(
    planted_recipe: Callable[..., Path],
) -> None:
    from pipelines.cli.main import main

    recipe = planted_recipe()

    def refusal(*options: str) -> str:
        environment = {"MASTER_ADDR": "localhost", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        result = CliRunner().invoke(main, ["search", str(recipe), *options], env=environment)
        assert result.exit_code == 2 and result.output.count("\n") == 1
        return result.output

    told = refusal("--nproc", "2")
    assert "--nproc 2: this process is a rank that a launcher started; give the number to the launcher" in told
    assert "training.micro_batch: 3 does not divide a rank's 16 sequences" in refusal("--set", "training.micro_batch=3")
    log = SearchFolder(recipe.with_suffix("") / "search").rank_log(0).read_text()
    assert "rank 0 of 1 on " in log and "Traceback" in log and "training.micro_batch: 3 does not divide" in log
