"""A search in bf16, at every ZeRO stage, against the same one in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastmix_data.recipe.load import load_recipe
from fastmix_data.results.mixture import Mixture
from train.search.plan import plan_search
from train.search.search import search

SHORT = {"token_budget": 16 * 32 * 80, "update_interval": 8}


def run(path: Path, *, stage: int, precision: str) -> Mixture:
    options = [f"deepspeed.zero_stage={stage}", f"training.precision={precision}"]
    return search(plan_search(load_recipe(path, options)), quiet=True).mixture


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_search_in_bf16_finds_what_one_in_float32_does(planted_recipe: Callable[..., Path], stage: int) -> None:
    expected = run(planted_recipe(**SHORT, name="fp32"), stage=0, precision="fp32")
    found = run(planted_recipe(**SHORT, name="bf16"), stage=stage, precision="bf16")
    assert found.weights["same"] > 0.5
    for name, weight in expected.weights.items():
        assert found.weights[name] == pytest.approx(weight, abs=0.03)
    for name, loss in expected.target.losses["same"].items():
        assert found.target.losses["same"][name] == pytest.approx(loss, rel=0.02)


def test_trials_run_in_bf16_without_zero(planted_recipe: Callable[..., Path]) -> None:
    path = planted_recipe(global_batch=4, token_budget=4 * 32 * 480, update_interval=8)
    trials = run(path, stage=0, precision="bf16").trials
    assert trials is not None and trials.num_pairs("start", "scores") >= 2
