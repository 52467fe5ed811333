"""Which of transformers' models can be scored is found out before training: each is scored right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from proxy_zoo import REFUSED, SCORED
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.load import load_recipe
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs, sequence_losses
from train.scores.hypergradient import HypergradientProbe, Scope
from train.scores.score_check import check_scores
from train.search.plan import plan_search
from train.search.search import search

BATCH, LENGTH, VOCABULARY = 3, 11, 64


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    keys = SCORED[name] if name in SCORED else REFUSED[name][0]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=VOCABULARY, use_cache=False, **keys))


@pytest.mark.parametrize("name", SCORED)
def test_a_model_that_passes_is_scored_as_separate_backward_passes_say(name: str) -> None:
    model = make_model(name).eval()
    check_scores(model, scope="all")
    check_scores(model, scope="last_block")
    parameters = list(model.parameters())
    tokens = torch.randint(0, VOCABULARY, (2 * BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))

    def losses(part: slice) -> Tensor:
        inputs = model_inputs(ModelInputs(tokens[part, :-1]), with_positions=has_learned_positions(model))
        return sequence_losses(model(**inputs).logits, tokens[part, 1:])

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])

    target, scored = slice(BATCH), slice(BATCH, None)
    v = gradient(losses(target).sum())
    expected = torch.stack([v @ gradient(loss) for loss in losses(scored)])
    probe = HypergradientProbe(model, scope="all")
    probe.target_gradient(losses(target).sum() for _ in range(1))
    with probe.scoring((BATCH, LENGTH)) as alignments:
        losses(scored).sum().backward()
    assert torch.allclose(alignments(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_scored_is_refused_by_name_and_its_head_can_be(name: str) -> None:
    model = make_model(name)
    with pytest.raises(RecipeError, match=f"{REFUSED[name][1]}.*use search.hypergradient: head"):
        check_scores(model, scope="all")
    check_scores(model, scope="head")


@pytest.mark.parametrize("scope", ["all", "last_block", "head"])
def test_the_check_leaves_no_trace(scope: Scope) -> None:
    model = make_model("gpt2").eval()  # with dropout
    random_state, parameters = torch.get_rng_state(), [parameter.clone() for parameter in model.parameters()]
    check_scores(model, scope=scope)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before, after) for before, after in zip(parameters, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training or module._forward_hooks for module in model.modules())


def test_dropout_inside_a_module_that_owns_parameters_is_refused() -> None:
    """Its derivative would be taken under another mask than the pass that trains."""

    class DroppingNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

        def forward(self, hidden: Tensor) -> Tensor:
            return nn.functional.dropout(hidden * self.weight, 0.5, self.training)

    model = make_model("llama")
    model.model.norm = DroppingNorm()
    with pytest.raises(RecipeError, match=r"scores of LlamaForCausalLM are .*% off .*hypergradient: head"):
        check_scores(model, scope="all")


def write_recipe(planted_recipe: Callable[..., Path], name: str, **search_keys: Any) -> Path:
    path = planted_recipe(name=name, token_budget=16 * 32 * 24, **search_keys)
    content = yaml.safe_load(path.read_text())
    content["proxy"] = {"config": {"model_type": name, **REFUSED[name][0]}}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", ["mamba", "mixtral"])
def test_a_search_refuses_such_a_proxy_before_training_and_the_remedy_works(
    planted_recipe: Callable[..., Path], name: str
) -> None:
    path = write_recipe(planted_recipe, name)
    with pytest.raises(RecipeError, match=r"use search\.hypergradient: head"):
        search(plan_search(load_recipe(path)), quiet=True)
    assert not (path.with_suffix("") / "search").exists()
    assert search(plan_search(load_recipe(path, ["search.hypergradient=head"])), quiet=True).did_work
