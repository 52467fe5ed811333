"""Compiled blocks train as others do, scores look into blocks that are not compiled, and what cannot be compiled is refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastmix_data.errors import RecipeError
from train.proxy.compiled_blocks import compile_blocks
from train.search.plan import SearchPlan
from train.search.search import search

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@needs_compiler
def test_a_search_with_compiled_blocks_moves_alike(planted_plan: Callable[..., SearchPlan]) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    settings = {"token_budget": 16 * 32 * 24, "initial_weights": "uniform"}
    plain = search(planted_plan(name="plain", **settings), quiet=True).mixture
    assert not counters["stats"]
    found = search(planted_plan("training.compile=true", name="compiled", **settings), quiet=True).mixture
    assert found.weights == pytest.approx(plain.weights, abs=1e-5)
    # One for training and one for the target gradient, whatever the number of blocks.
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]


@needs_compiler
def test_a_compiler_that_fails_is_one_line(planted_plan: Callable[..., SearchPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(RecipeError, match=r"training.compile: torch.compile fails on LlamaDecoderLayer \(.*\); leave it out"):
        search(planted_plan("training.compile=true"), quiet=True)


def test_models_without_blocks_and_zero_3_are_refused(planted_plan: Callable[..., SearchPlan]) -> None:
    with pytest.raises(RecipeError, match=r"training.compile: Linear has no list of blocks to compile; leave it out"):
        compile_blocks(nn.Linear(1, 1))
    with pytest.raises(RecipeError, match=r"training.compile: deepspeed.zero_stage 3 takes parameters apart .* use stage 2"):
        planted_plan("training.compile=true", "deepspeed.zero_stage=3")
