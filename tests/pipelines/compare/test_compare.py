"""`fastmix compare` from the list of methods to compare.json: complete, resumable, shared by targets, and refused in one line."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import FastmixError, RecipeError
from fastmix_data.machine import Workers
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.results.comparison import Comparison, load_comparison
from fastmix_data.results.mixture import Mixture, TrialsRecord, load_mixture
from fastmix_data.workdir import Workdir
from pipelines.cli.main import main
from pipelines.compare.methods import parse_methods
from pipelines.compare.pool import run_jobs
from pipelines.compare.proxies import ProxyJob
from pipelines.compare.run import compare
from pipelines.compare.searches import ReweightingJob, centre_of, found_by_trials, proxy_job, swarm_jobs
from pipelines.compare.side_by_side import run_side_by_side
from pipelines.compare.table import mean_ranks
from train.proxy.training import ProxyPlan
from train.search.plan import SearchPlan, plan_search

METHODS = "fastmix,trials,count,paper,uniform,regmix:3,regmix-count:3,olmix:3,additive:3,doge,doremi"
ALPHABETS = {"low": "abcdef ", "mid": "ghijkl ", "high": "uvwxyz "}
STEPS, BATCH, LENGTH = 20, 8, 32


def write_recipe(folder: Path) -> Path:
    """Three sources over alphabets of their own; the target is `low`."""
    rng = random.Random(0)
    for name, alphabet in ALPHABETS.items():
        lines = [json.dumps({"text": "".join(rng.choices(alphabet, k=200))}) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    recipe = {
        "workdir": "work",
        "tokenizer": {"bytes": True},
        "sources": {name: {"files": f"{name}.jsonl"} for name in ALPHABETS},
        "shards": {"block_tokens": 64, "valid_fraction": 0.2},
        "target": {"sources": {"low": 1}},
        "proxy": {
            "config": {
                "model_type": "llama",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 24,
            }
        },
        "training": {
            "token_budget": STEPS * BATCH * LENGTH,
            "sequence_length": LENGTH,
            "global_batch": BATCH,
            "learning_rate": 0.02,
        },
        "search": {"target_batch": 4, "update_interval": 2, "eval_sequences": 8},
        "emit": {"token_budget": 6000},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def fastmix(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_compare(recipe: Path, *options: str, methods: str = METHODS, seeds: int = 2) -> Result:
    result = fastmix("compare", recipe, "--methods", methods, "--seeds", seeds, "--workers", 1, *options)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def compared_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preprocessed folder with a finished comparison."""
    recipe = write_recipe(tmp_path_factory.mktemp("compare"))
    assert fastmix("preprocess", recipe, "--workers", 1).exit_code == 0
    assert "mean rank" in run_compare(recipe).output
    return recipe


@pytest.fixture
def compared(compared_once: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(compared_once.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / "recipe.yaml"


def workdir(recipe: Path) -> Workdir:
    return Workdir(recipe.parent / "work")


def comparison_of(recipe: Path) -> Comparison:
    return load_comparison(workdir(recipe).compare.comparison)


def plan_of(recipe: Path, *overrides: str) -> SearchPlan:
    return plan_search(load_recipe(recipe, overrides))


def trained(recipe: Path) -> dict[Path, int]:
    """When each proxy and search result of the comparison was written."""
    folder = workdir(recipe).compare.root
    files = [*folder.glob("runs/*/proxy.pt"), *folder.glob("found/*.json"), *folder.glob("searches/*/mixture.json")]
    return {path: path.stat().st_mtime_ns for path in files}


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


def test_an_unprocessed_workdir_names_preprocess(tmp_path: Path) -> None:
    result = fastmix("compare", write_recipe(tmp_path), "--methods", "uniform")
    assert result.exit_code == 2
    assert "fastmix preprocess" in result.stderr


def job_of(plan: SearchPlan, seed: int = 7) -> ProxyJob:
    return proxy_job(plan, np.array([0.2, 0.3, 0.5]), names=("low",), half="unseen", seed=seed)


def test_workers_train_the_same_proxies_as_this_process(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = [job_of(plan_of(compared), seed) for seed in (7, 8)]
    first = run_jobs(jobs, Workers(1, quiet=True), description="here")
    shutil.rmtree(workdir(compared).compare.root / "runs")
    again = run_jobs(jobs, Workers(2, quiet=True), description="there")
    assert [result.losses["low"] for result in again] == pytest.approx([result.losses["low"] for result in first], abs=1e-5)


def test_a_failing_job_s_error_comes_home(compared: Path) -> None:
    job = job_of(plan_of(compared, "training.learning_rate=1e30", "training.gradient_clipping=0"))
    with pytest.raises(FastmixError, match=r"lower training\.learning_rate"):
        run_jobs([job], Workers(1, quiet=True), description="here")
    assert job.finished() is None


def test_side_by_side_a_comparison_finds_the_same(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trains_alone(*_: object, **__: object) -> None:
        raise AssertionError("a proxy was trained alone")

    monkeypatch.setattr("pipelines.compare.proxies.train_on_mixture", trains_alone)
    folder = workdir(compared).compare
    before = {path.parent.name: read_json(path) for path in folder.root.glob("runs/*/losses.json")}
    for path in (folder.root / "runs", folder.root / "found"):
        shutil.rmtree(path)
    folder.comparison.unlink()
    workers = Workers(1, quiet=True)
    compare(plan_of(compared), methods="uniform,regmix:3,doremi", num_seeds=2, workers=workers, side_by_side=True)
    after = {path.parent.name: read_json(path) for path in folder.root.glob("runs/*/losses.json")}
    # The swarm, DoReMi's reference and uniform's proxies. What is fitted answers otherwise to its last digits, and others confirm it.
    same = before.keys() & after.keys()
    assert len(after) == 3 + 1 + 3 * 2 and len(same) >= 3 + 1 + 2
    for name in same:
        assert after[name].keys() == before[name].keys()
        for half, losses in before[name].items():
            assert after[name][half] == pytest.approx(losses, abs=1e-4)


def test_side_by_side_only_what_is_missing_is_done_and_measured_as_one_by_one(compared: Path) -> None:
    plan, workers = plan_of(compared), Workers(1, quiet=True)
    run_side_by_side([job_of(plan, 7), job_of(plan, 8)], workers, description="there", wanted=True)
    runs = trained(compared)
    jobs = [replace(job_of(plan, seed), names=("mid", "low")) for seed in (7, 8, 9)]
    run_side_by_side(jobs, workers, description="here", wanted=True)
    again = trained(compared)
    assert all(again[path] == runs[path] for path in runs) and len(again) == len(runs) + 1
    for job in jobs:
        stacked = job.result().losses
        job.folder.losses.unlink()
        assert job.finished() is None
        assert run_jobs([job], workers, description="alone")[0].losses == pytest.approx(stacked, abs=1e-5)


def test_side_by_side_a_proxy_that_diverges_is_not_kept(compared: Path) -> None:
    job = job_of(plan_of(compared, "training.learning_rate=1e30", "training.gradient_clipping=0"))
    with pytest.raises(FastmixError, match=r"lower training\.learning_rate"):
        run_side_by_side([job], Workers(1, quiet=True), description="here", wanted=True)
    assert job.finished() is None


def test_why_proxies_are_not_trained_side_by_side_is_said_once(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2 = "proxy.config={model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}"  # which has dropout
    jobs = [replace(job_of(plan_of(compared, gpt2), seed), names=names) for seed in (7, 8) for names in (("low",), ("mid",))]
    run_side_by_side(jobs, Workers(1), description="here", wanted=True)
    assert capsys.readouterr().err.count("proxies are trained one by one: GPT2LMHeadModel cannot be stacked") == 1
    assert [job.finished() for job in jobs] == [None] * 4


OTHER_TRAINING: dict[str, Any] = {
    "token_budget": 2 * STEPS * BATCH * LENGTH,
    "sequence_length": 16,
    "global_batch": 4,
    "micro_batch": 2,
    "learning_rate": 0.01,
    "warmup_fraction": 0.2,
    "min_lr_fraction": 0.5,
    "weight_decay": 0.0,
    "adam_betas": (0.8, 0.9),
    "gradient_clipping": 0.5,
    "precision": "fp32",
    "locality_window": 8,
    "document_attention": True,
}


def test_a_proxy_is_kept_by_everything_that_decides_it_and_by_nothing_else(compared_once: Path) -> None:
    """A new key has to be put on one side, or stale proxies would be used."""
    assert set(OTHER_TRAINING) == set(TrainingSection.model_fields) - {"seed"}  # which is given to each run
    assert set(ProxyPlan.__dataclass_fields__) == {"catalog", "proxy", "base", "training", "deepspeed", "production_tokens"}
    plan = plan_of(compared_once)

    def folder(plan: SearchPlan) -> Path:
        return job_of(plan).folder.root

    others = [plan_of(compared_once, f"training.{key}={json.dumps(value)}") for key, value in OTHER_TRAINING.items()]
    others += [plan_of(compared_once, "proxy.config.hidden_size=8"), plan_of(compared_once, "search.match_repetition=true")]
    assert len({folder(plan), *map(folder, others), job_of(plan, seed=8).folder.root}) == len(others) + 2
    rest = f"training.token_budget={STEPS * BATCH * LENGTH + 1}"  # makes no step
    for override in (
        rest,
        "training.seed=5",
        "search.update_interval=4",
        "search.eval_sequences=4",
        "target={sources: {mid: 1}}",
    ):
        assert folder(plan_of(compared_once, override)) == folder(plan), override


def test_a_reweighting_search_is_kept_by_its_seed_and_doge_s_by_its_target_too(compared_once: Path) -> None:
    plan, seed = plan_of(compared_once), plan_of(compared_once, "training.seed=5")
    target = plan_of(compared_once, "target={sources: {mid: 1}}")
    doge, doremi = ([ReweightingJob(one, kind).path for one in (plan, seed, target)] for kind in ("doge", "doremi"))
    assert len(set(doge)) == 3 and doremi[0] == doremi[2] != doremi[1]
    assert ReweightingJob(plan, "doge").finished() is not None


def test_ranks_are_averaged_over_seeds() -> None:
    losses = {"best": [1.0, 1.0, 2.0], "tied": [2.0, 3.0, 3.0], "last": [2.0, 4.0, 1.0]}
    assert mean_ranks(losses) == pytest.approx({"best": 4 / 3, "tied": (2.5 + 2 + 3) / 3, "last": (2.5 + 3 + 1) / 3})
    assert np.isclose(sum(mean_ranks(losses).values()), 6)
