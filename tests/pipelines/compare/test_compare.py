"""`fastmix compare` from the list of methods to compare.json: complete, resumable, shared by targets, and refused in one line."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from fastmix_data.errors import FastmixError, RecipeError
from fastmix_data.recipe.file import load_recipe
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.shards.catalog import load_catalog
from pipelines.cli import main
from pipelines.compare.methods import parse_methods
from pipelines.compare.pool import run_jobs
from pipelines.compare.proxies import TRAINING_KEYS, ProxyJob
from pipelines.compare.run import Workers, compare
from pipelines.compare.table import mean_ranks

METHODS = "fastmix,uniform,regmix:3,olmix:3,doge,doremi"
ALPHABETS = {"low": "abcdef ", "mid": "ghijkl ", "high": "uvwxyz "}
STEPS, BATCH, LENGTH = 16, 8, 32


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
        "search": {
            "token_budget": STEPS * BATCH * LENGTH,
            "sequence_length": LENGTH,
            "global_batch": BATCH,
            "target_batch": 4,
            "update_interval": 2,
            "weights_warmup_steps": 2,
            "learning_rate": 0.02,
            "eval_sequences": 8,
        },
        "emit": {"token_budget": 5000},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def fastmix(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def compared_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preprocessed folder with a finished comparison."""
    recipe = write_recipe(tmp_path_factory.mktemp("compare"))
    assert fastmix("preprocess", recipe, "--workers", 1).exit_code == 0
    result = fastmix("compare", recipe, "--methods", METHODS, "--seeds", 2, "--workers", 1, "--debug")
    assert result.exit_code == 0, result.output
    assert "mean rank" in result.output
    return recipe


@pytest.fixture
def compared(compared_once: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(compared_once.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / "recipe.yaml"


def content_of(recipe: Path) -> dict[str, Any]:
    return dict(json.loads((recipe.parent / "work" / "compare" / "compare.json").read_text()))


def trained(recipe: Path) -> dict[Path, int]:
    """When each proxy and search result of the comparison was written."""
    folder = recipe.parent / "work" / "compare"
    files = [*folder.glob("runs/*/proxy.pt"), *folder.glob("found/*.json"), *folder.glob("searches/*/mixture.json")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_every_method_has_weights_paired_losses_and_its_own_cost(compared_once: Path) -> None:
    content = content_of(compared_once)
    methods, budget = content["methods"], STEPS * BATCH * LENGTH
    assert list(methods) == METHODS.split(",")
    assert content["seeds"] == [100, 101]
    for method in methods.values():
        assert sum(method["weights"].values()) == pytest.approx(1)
        assert len(method["target_loss"]) == 2
        assert method["target_losses_by_name"] == {"low": method["target_loss"]}
    assert {name: method["search_tokens"] for name, method in methods.items()} == {
        "fastmix": budget + STEPS // 2 * 4 * LENGTH,
        "uniform": 0,
        "regmix:3": 3 * budget,
        "olmix:3": 3 * budget,
        "doge": budget + STEPS * 4 * LENGTH,
        "doremi": 2 * budget,
    }
    assert methods["uniform"]["search_flops"] == 0 < methods["fastmix"]["search_flops"] < methods["regmix:3"]["search_flops"]
    assert methods["doge"]["weights"]["low"] > 1 / 3  # the source with the target's letters
    assert (compared_once.parent / "work" / "compare" / "compare.svg").read_text().startswith("<svg")


def test_a_second_call_does_nothing(compared: Path) -> None:
    path = compared.parent / "work" / "compare" / "compare.json"
    before = path.stat().st_mtime_ns
    result = fastmix("compare", compared, "--methods", METHODS, "--seeds", 2)
    assert result.exit_code == 0
    assert "nothing to do" in result.output
    assert path.stat().st_mtime_ns == before


def test_a_stopped_comparison_goes_on_without_training_again(compared: Path) -> None:
    before, runs = content_of(compared), trained(compared)
    (compared.parent / "work" / "compare" / "compare.json").unlink()
    lost = sorted(path for path in runs if path.name == "proxy.pt")[0].parent
    shutil.rmtree(lost)
    assert fastmix("compare", compared, "--methods", METHODS, "--seeds", 2, "--workers", 1).exit_code == 0
    again, after = trained(compared), content_of(compared)
    assert {path for path in again if again[path] != runs[path]} == {lost / "proxy.pt"}
    assert set(again) == set(runs)
    for name, method in before["methods"].items():
        assert after["methods"][name]["weights"] == method["weights"]
        assert after["methods"][name]["target_loss"] == method["target_loss"]


def test_a_kept_proxy_gives_the_losses_of_a_fresh_one(compared: Path) -> None:
    before, runs = content_of(compared), trained(compared)
    (compared.parent / "work" / "compare" / "compare.json").unlink()
    for path in compared.parent.glob("work/compare/runs/*/losses.json"):
        path.unlink()
    assert fastmix("compare", compared, "--methods", METHODS, "--seeds", 2, "--workers", 1).exit_code == 0
    assert trained(compared) == runs
    for name, method in content_of(compared)["methods"].items():
        assert method["target_loss"] == pytest.approx(before["methods"][name]["target_loss"], abs=1e-6)


def test_another_target_shares_the_swarm_and_uniform_s_proxies(compared: Path) -> None:
    runs = trained(compared)
    recipe = load_recipe(compared)
    other = recipe.model_copy(update={"target": TargetSection(sources={"high": 1.0, "mid": 1.0})})
    directory = compared.parent / "high"
    result = compare(
        other, methods="uniform,regmix:3", num_seeds=2, workers=Workers(num_workers=1, quiet=True), directory=directory
    )
    assert list(result.content["methods"]["uniform"]["target_losses_by_name"]) == ["high", "mid"]
    again = trained(compared)
    assert all(again[path] == runs[path] for path in runs)
    assert len(again) == len(runs) + 2  # the two proxies that confirm the new mixture
    assert (directory / "compare.json").is_file()


def test_one_more_method_costs_only_that_method(compared: Path) -> None:
    runs = trained(compared)
    methods = f"{METHODS},proportional"
    assert fastmix("compare", compared, "--methods", methods, "--seeds", 2, "--workers", 1).exit_code == 0
    assert "proportional" in content_of(compared)["methods"]
    assert len(trained(compared)) == len(runs) + 2


def test_another_recipe_is_refused_unless_replaced(compared: Path) -> None:
    options = ("--set", "search.update_interval=4", "--methods", "uniform", "--seeds", 2, "--workers", 1)
    refused = fastmix("compare", compared, *options)
    assert refused.exit_code == 2
    assert "made with another recipe" in refused.stderr
    assert "--replace" in refused.stderr
    runs = trained(compared)
    assert fastmix("compare", compared, *options, "--replace").exit_code == 0
    assert trained(compared) == runs  # how the mixture moves does not change a proxy on a fixed one


def test_a_finished_search_of_the_recipe_is_used(compared: Path) -> None:
    folder = compared.parent / "work"
    (searched,) = (folder / "compare" / "searches").iterdir()
    searched.rename(folder / "search")
    (folder / "compare" / "compare.json").unlink()
    assert fastmix("compare", compared, "--methods", METHODS, "--seeds", 2, "--workers", 1).exit_code == 0
    mixture = json.loads((folder / "search" / "mixture.json").read_text())
    assert content_of(compared)["methods"]["fastmix"]["weights"] == pytest.approx(mixture["weights"])
    assert not list((folder / "compare" / "searches").iterdir())


def test_mixtures_are_brought_within_the_constraints(compared: Path) -> None:
    options = ("--set", "search.constraints.ceiling=0.4", "--methods", "uniform,regmix:3", "--seeds", 1, "--workers", 1)
    assert fastmix("compare", compared, *options, "--replace").exit_code == 0
    for method in content_of(compared)["methods"].values():
        assert max(method["weights"].values()) <= 0.4 + 1e-9


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("uniform,regmx:3", "did you mean regmix?"),
        ("uniform,regmix", "regmix:32"),
        ("uniform,regmix:1", "2 or more"),
        ("uniform,regmix:x", "needs a number of proxies"),
        ("uniform,doge:3", "write doge"),
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


def test_an_unprocessed_workdir_names_preprocess(tmp_path: Path) -> None:
    result = fastmix("compare", write_recipe(tmp_path), "--methods", "uniform")
    assert result.exit_code == 2
    assert "fastmix preprocess" in result.stderr


def test_workers_train_the_same_proxies_as_this_process(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = load_recipe(compared)
    jobs = [ProxyJob(recipe, (0.2, 0.3, 0.5), seed, ("low",), "unseen") for seed in (7, 8)]
    first = run_jobs(jobs, description="here", num_workers=1, scheduler=None, quiet=True)
    shutil.rmtree(compared.parent / "work" / "compare" / "runs")
    again = run_jobs(jobs, description="there", num_workers=2, scheduler=None, quiet=True)
    assert [result.losses["low"] for result in again] == pytest.approx([result.losses["low"] for result in first], abs=1e-5)


def test_a_failing_job_s_error_comes_home(compared: Path) -> None:
    recipe = load_recipe(compared, ["search.learning_rate=1e30", "search.gradient_clipping=0"])
    job = ProxyJob(recipe, (0.2, 0.3, 0.5), 7, ("low",), "unseen")
    with pytest.raises(FastmixError, match=r"lower search\.learning_rate"):
        run_jobs([job], description="here", num_workers=1, scheduler=None, quiet=True)
    assert job.finished(load_catalog(recipe.paths.catalog)) is None


def test_every_key_of_the_search_either_decides_a_fixed_run_or_does_not() -> None:
    """A new key of the search has to be put on one side, or stale proxies would be used."""
    moves_mixtures_or_reports = {
        "token_budget",  # through num_steps
        "seed",  # given to each run
        "exploration",
        "hypergradient",
        "precondition",
        "target_memory",
        "score",
        "shrink_scores",
        "update_interval",
        "target_batch",
        "weights_optimizer",
        "weights_learning_rate",
        "weights_warmup_steps",
        "score_smoothing",
        "initial_weights",
        "trial_fraction",
        "prior",
        "prior_strength",
        "constraints",
        "match_repetition",  # through share_seen
        "stop",
        "average_fraction",
        "eval_sequences",  # part of the key of losses
        "checkpoint_interval",
    }
    assert set(SearchSection.model_fields) == moves_mixtures_or_reports | set(TRAINING_KEYS)


def test_ranks_are_averaged_over_seeds() -> None:
    losses = {"best": [1.0, 1.0, 2.0], "tied": [2.0, 3.0, 3.0], "last": [2.0, 4.0, 1.0]}
    assert mean_ranks(losses) == pytest.approx({"best": 4 / 3, "tied": (2.5 + 2 + 3) / 3, "last": (2.5 + 3 + 1) / 3})
    assert np.isclose(sum(mean_ranks(losses).values()), 6)
