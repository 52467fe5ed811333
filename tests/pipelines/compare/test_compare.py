"""`fastmix compare` from the list of methods to compare.json: complete, resumable, shared by targets, and refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_comparison import BATCH, LENGTH, METHODS, STEPS, comparison_of, fastmix, plan_of, run_compare, trained, workdir

from fastmix_data.machine import Workers
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.target import TargetSection
from fastmix_data.results.comparison import load_comparison
from fastmix_data.results.mixture import load_mixture
from pipelines.compare.run import compare
from train.search.plan import plan_search


def test_every_method_has_weights_paired_losses_and_its_own_cost(compared_once: Path) -> None:
    comparison, budget = comparison_of(compared_once), STEPS * BATCH * LENGTH
    methods, plan = comparison.methods, plan_of(compared_once)
    assert list(methods) == METHODS.split(",")
    assert comparison.seeds == (100, 101)
    assert (comparison.recipe_hash, comparison.catalog_hash) == (plan.recipe_hash, plan.catalog.fingerprint)
    assert (comparison.token_budget, comparison.target) == (budget, {"low": 1.0})
    for method in methods.values():
        assert sum(method.weights.values()) == pytest.approx(1)
        assert len(method.target_loss) == 2
        assert method.target_losses_by_name == {"low": method.target_loss}
    assert {name: method.search_tokens for name, method in methods.items()} == {
        "fastmix": budget + STEPS // 2 * 4 * LENGTH,
        "trials": 0,  # the budget is too short for any, and the search's start is what is left without the scores
        "count": 0,
        "paper": budget + 4 * LENGTH,  # one update, at step 20
        "uniform": 0,
        "regmix:3": 3 * budget,
        "regmix-count:3": 3 * budget,
        "olmix:3": 3 * budget,
        "additive:3": 3 * budget,
        "doge": budget + STEPS * 4 * LENGTH,
        "doremi": 2 * budget,
    }
    assert methods["uniform"].search_flops == 0 < methods["fastmix"].search_flops < methods["regmix:3"].search_flops
    assert methods["doge"].weights["low"] > 1 / 3  # the source with the target's letters
    assert methods["trials"].weights == pytest.approx(methods["count"].weights)
    assert workdir(compared_once).compare.picture.read_text().startswith("<svg")


def test_a_second_call_does_nothing_and_one_more_method_costs_only_that_method(compared: Path) -> None:
    path, runs = workdir(compared).compare.comparison, trained(compared)
    before = path.stat().st_mtime_ns
    assert "nothing to do" in run_compare(compared).output
    assert path.stat().st_mtime_ns == before
    run_compare(compared, methods=f"{METHODS},proportional")
    assert "proportional" in comparison_of(compared).methods
    again = trained(compared)
    assert all(again[path] == runs[path] for path in runs) and len(again) == len(runs) + 2


def test_a_stopped_comparison_goes_on_without_training_again(compared: Path) -> None:
    before, runs, folder = comparison_of(compared), trained(compared), workdir(compared).compare
    folder.comparison.unlink()
    lost = min(path for path in runs if path.name == "proxy.pt").parent
    shutil.rmtree(lost)
    run_compare(compared)
    again, after = trained(compared), comparison_of(compared)
    assert {path for path in again if again[path] != runs[path]} == {lost / "proxy.pt"}
    assert set(again) == set(runs)
    for name, method in before.methods.items():
        assert after.methods[name].weights == method.weights
        assert after.methods[name].target_loss == method.target_loss


def test_a_kept_proxy_gives_the_losses_of_a_fresh_one(compared: Path) -> None:
    before, runs, folder = comparison_of(compared), trained(compared), workdir(compared).compare
    folder.comparison.unlink()
    for path in folder.root.glob("runs/*/losses.json"):
        path.unlink()
    run_compare(compared)
    assert trained(compared) == runs
    for name, method in comparison_of(compared).methods.items():
        assert method.target_loss == pytest.approx(before.methods[name].target_loss, abs=1e-6)


def test_another_target_shares_the_swarm_and_uniform_s_proxies(compared: Path) -> None:
    runs, recipe = trained(compared), load_recipe(compared)
    other = plan_search(recipe.model_copy(update={"target": TargetSection(sources={"high": 1.0, "mid": 1.0})}))
    directory = compared.parent / "high"
    workers = Workers(num_workers=1, quiet=True)
    result = compare(other, methods="uniform,regmix:3", num_seeds=2, workers=workers, directory=directory)
    assert list(result.comparison.methods["uniform"].target_losses_by_name) == ["high", "mid"]
    again = trained(compared)
    assert all(again[path] == runs[path] for path in runs)
    assert len(again) == len(runs) + 2  # the two proxies that confirm the new mixture
    assert result.path.parent == directory and load_comparison(result.path) == result.comparison


def test_another_recipe_is_refused_unless_replaced(compared: Path) -> None:
    options, runs = ("--set", "search.update_interval=4"), trained(compared)
    refused = fastmix("compare", compared, "--methods", "uniform", "--workers", 1, *options)
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert "made with another recipe" in refused.stderr
    assert "--replace" in refused.stderr
    run_compare(compared, *options, "--replace", methods="uniform")
    assert trained(compared) == runs  # how the mixture moves does not change a proxy on a fixed one


def test_a_finished_search_of_the_recipe_is_used(compared: Path) -> None:
    paths = workdir(compared)
    paths.compare.search(plan_of(compared).recipe_hash[:20]).root.rename(paths.search.root)
    left = sorted((paths.compare.root / "searches").iterdir())
    paths.compare.comparison.unlink()
    run_compare(compared)
    mixture = load_mixture(paths.search.mixture)
    assert comparison_of(compared).methods["fastmix"].weights == pytest.approx(mixture.weights)
    assert sorted((paths.compare.root / "searches").iterdir()) == left  # of the published rule alone


def test_mixtures_are_brought_within_the_constraints(compared: Path) -> None:
    capped = ("--set", "search.constraints.ceiling=0.4", "--replace")
    shown = run_compare(compared, *capped, methods="uniform,regmix:3,olmix:3,additive:3", seeds=1)
    assert "projected onto them instead" not in shown.output
    for method in comparison_of(compared).methods.values():
        assert max(method.weights.values()) <= 0.4 + 1e-9


def test_mixmin_shares_its_one_source_proxies_with_other_targets(compared: Path) -> None:
    budget = f"training.token_budget={3 * 20 * BATCH * LENGTH}"
    run_compare(compared, "--set", budget, "--replace", methods="uniform,mixmin", seeds=1)
    found, runs = comparison_of(compared).methods["mixmin"], trained(compared)
    assert found.search_tokens == 3 * 20 * BATCH * LENGTH
    assert found.weights["low"] > 0.9  # letters that no other source's proxy knows
    target = "target={sources: {high: 1, mid: 1}}"
    run_compare(compared, "--set", budget, "--set", target, "--replace", methods="uniform,mixmin", seeds=1)
    assert comparison_of(compared).methods["mixmin"].weights["low"] < 0.1
    again = trained(compared)
    assert all(again[path] == runs[path] for path in runs)
    assert len(again) == len(runs) + 1  # the proxy that confirms the new mixture
