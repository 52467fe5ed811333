"""Lists of methods: what cannot be is one line, and what each method answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_comparison import BATCH, LENGTH, STEPS, fastmix, plan_of, write_recipe

from fastmix_data.errors import RecipeError
from fastmix_data.results.mixture import Mixture, TrialsRecord
from pipelines.compare.methods import parse_methods
from pipelines.compare.searches import centre_of, found_by_trials, swarm_jobs
from train.search.plan import SearchPlan


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("uniform,regmx:3", "did you mean regmix?"),
        ("uniform,regmix", "regmix:32"),
        ("uniform,regmix:1", "2 or more"),
        ("uniform,regmix:x", "needs a number of proxies"),
        ("uniform,doge:3", "write doge"),
        ("uniform,mixmin:3", "write mixmin"),
        ("uniform,regmix-count", "regmix-count:32"),
        ("fastmix", "uniform is missing"),
        ("uniform,uniform", "given twice"),
        ("uniform,", "there is no method ''"),
    ],
)
def test_a_wrong_list_of_methods_is_one_line(compared_once: Path, methods: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        parse_methods(methods)
    result = fastmix("compare", compared_once, "--methods", methods)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "steps", "problem", "needed"),
    [("mixmin", 18, "are 6 each, fewer than 20", 3 * 20), ("paper", 18, "every 20 steps, and the budget is 18", 20)],
)
def test_a_budget_too_short_for_a_method_is_one_line(
    compared_once: Path, method: str, steps: int, problem: str, needed: int
) -> None:
    budget = f"training.token_budget={steps * BATCH * LENGTH}"
    result = fastmix("compare", compared_once, "--methods", f"uniform,{method}", "--workers", 1, "--set", budget)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert problem in result.stderr and f"raise it to {needed * BATCH * LENGTH}" in result.stderr


def test_an_unprocessed_workdir_names_preprocess(tmp_path: Path) -> None:
    result = fastmix("compare", write_recipe(tmp_path), "--methods", "uniform")
    assert result.exit_code == 2
    assert "fastmix preprocess" in result.stderr


def test_without_the_scores_trials_decide_between_what_is_left_at_their_own_cost(compared_once: Path) -> None:
    plan, per_step = plan_of(compared_once), BATCH * LENGTH
    shares = {"start": (0.5, 0.3, 0.2), "scores": (0.8, 0.1, 0.1), "proportional": (0.2, 0.4, 0.4)}
    losses = {"start": (4.0, 4.11, 4.22), "scores": (3.0, 3.12, 3.2), "proportional": (3.51, 3.6, 3.72)}
    record = TrialsRecord(
        mixtures={name: dict(zip(plan.catalog.sources, found, strict=True)) for name, found in shares.items()},
        losses={name: {str(number): loss for number, loss in enumerate(found)} for name, found in losses.items()},
        tokens={str(number): 30 * per_step for number in range(3)},
        probability={"start": 0.0, "scores": 1.0, "proportional": 0.0},
        winner="scores",
        ahead={},
        noise=0.01,
        exponent=0.5,
        horizon_tokens=STEPS * per_step,
    )
    found = found_by_trials(Mixture(weights=record.mixtures["scores"], trials=record), plan)
    assert found.weights == shares["proportional"] and found.cost.tokens == 2 * 3 * 30 * per_step


def test_only_the_swarm_around_the_count_is_of_one_target(compared_once: Path) -> None:
    plans = [plan_of(compared_once), plan_of(compared_once, "target={sources: {mid: 1}}")]

    def swarm(plan: SearchPlan, name: str) -> list[tuple[float, ...]]:
        (_, method) = parse_methods(f"uniform,{name}")
        return [job.weights for job in swarm_jobs(plan, centre_of(method, plan), num_proxies=64)]

    assert swarm(plans[0], "regmix:64") == swarm(plans[0], "olmix:64") == swarm(plans[1], "regmix:64")
    around = [np.mean(swarm(plan, "regmix-count:64"), axis=0) for plan in plans]
    assert around[0][0] > 0.9 and around[1][1] > 0.9  # counts know the target's letters
    capped = np.mean(swarm(plan_of(compared_once, "search.constraints.ceiling=0.5"), "regmix-count:64"), axis=0)
    assert capped[0] == pytest.approx(0.5, abs=0.15)
