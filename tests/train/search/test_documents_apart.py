"""Every pass of a run is told where examples or documents begin, whoever makes it; without either, none is told anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from train.baselines.reweighting_rules import search_doge, search_doremi
from train.proxy import loss_model
from train.proxy.engine import process_group
from train.proxy.losses import ModelInputs
from train.proxy.training import train_on_mixture
from train.search.plan import SearchPlan
from train.search.search import search

MakePlan = Callable[..., SearchPlan]
NUM_STEPS = 12
SHORT = {"token_budget": 16 * 32 * NUM_STEPS, "eval_sequences": 4}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[ModelInputs]:
    """Inputs of all passes of engines from here on."""
    seen: list[ModelInputs] = []
    real = loss_model.model_inputs

    def noting(inputs: ModelInputs, **options: Any) -> Any:
        seen.append(inputs)
        return real(inputs, **options)

    monkeypatch.setattr(loss_model, "model_inputs", noting)
    return seen


def positions_after_ends(tokens_BT: torch.Tensor) -> list[list[int]]:
    """By a plain loop, for the planted corpora's end-of-text token 0."""
    rows = []
    for row in tokens_BT.tolist():
        count, positions = 0, []
        for token in row:
            positions.append(count)
            count = 0 if token == 0 else count + 1
        rows.append(positions)
    return rows


@pytest.mark.parametrize("run", ["search", "doge", "doremi"])
def test_every_pass_is_told_where_documents_begin(planted_plan: MakePlan, passes: list[ModelInputs], run: str) -> None:
    plan = planted_plan(document_attention=True, **SHORT)
    make_passes(plan, run)
    assert len(passes) > 1.5 * NUM_STEPS  # of training, and of targets or the reference
    assert all(inputs.positions_BT is not None and inputs.positions_BT.shape == inputs.tokens_BT.shape for inputs in passes)
    assert all(inputs.positions_BT.tolist() == positions_after_ends(inputs.tokens_BT) for inputs in passes[::5])
    assert any((inputs.positions_BT[:, 1:] == 0).any() for inputs in passes)


def test_passes_with_examples_are_told_and_all_others_keep_their_fast_path(
    planted_plan: MakePlan, passes: list[ModelInputs]
) -> None:
    make_passes(planted_plan(sources=("noise", "same", "masked"), name="examples", **SHORT), "search")
    told = [inputs for inputs in passes if inputs.positions_BT is not None]
    # The target is of plain text, and read by readers of its own; every batch of training, and every scored one, may hold examples.
    assert len(told) == NUM_STEPS + NUM_STEPS // 4 < len(passes)
    passes.clear()
    make_passes(planted_plan(**SHORT), "search")
    assert passes and all(inputs.positions_BT is None for inputs in passes)


def make_passes(plan: SearchPlan, run: str) -> None:
    if run == "search":
        assert search(plan, quiet=True).did_work
        return
    with process_group(rank=0, world_size=1):
        if run == "doge":
            search_doge(plan.proxy, plan.target, plan.search, on_tokens=lambda _: None)
            return
        reference = train_on_mixture(plan.proxy, np.full(3, 1 / 3), seed=0).engine
        search_doremi(plan.proxy, reference=reference, on_tokens=lambda _: None)
        reference.close()
