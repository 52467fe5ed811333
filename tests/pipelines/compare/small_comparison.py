"""A comparison that takes seconds: its recipe, the command, and ways to look at what it left."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import yaml
from click.testing import CliRunner, Result

from fastmix_data.recipe.load import load_recipe
from fastmix_data.results.comparison import Comparison, load_comparison
from fastmix_data.workdir import Workdir
from pipelines.cli.main import main
from pipelines.compare.proxies import ProxyJob
from pipelines.compare.searches import proxy_job
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


def job_of(plan: SearchPlan, seed: int = 7) -> ProxyJob:
    return proxy_job(plan, np.array([0.2, 0.3, 0.5]), names=("low",), half="unseen", seed=seed)
