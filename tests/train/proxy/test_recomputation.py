"""Blocks that are computed once more give what they give otherwise, to the bit, and keep little for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from proxy_zoo import SCORED
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.errors import RecipeError
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs, sequence_losses
from train.proxy.recomputation import check_recomputation, recompute_blocks
from train.scores.hypergradient import HypergradientProbe, Scope
from train.search.plan import SearchPlan
from train.search.search import search

BATCH, LENGTH, VOCABULARY = 3, 32, 64


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=VOCABULARY, use_cache=False, **SCORED[name]))


def losses_of(model: Any, seed: int) -> Tensor:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    inputs = model_inputs(ModelInputs(tokens[:, :-1]), with_positions=has_learned_positions(model))
    torch.manual_seed(seed)  # of dropout
    return sequence_losses(model(**inputs).logits, tokens[:, 1:])


def everything_of(model: Any, scope: Scope) -> list[Tensor]:
    """Target gradient and scores in evaluation mode, then losses and gradients of training, with what was drawn afterwards."""
    probe = HypergradientProbe(model, scope=scope)
    model.eval()
    probe.target_gradient(losses_of(model, 1).sum() for _ in range(1))
    target = [v.clone() for v in probe.whole_target()]
    with probe.scoring((BATCH, LENGTH)) as alignments:
        probe.backward(losses_of(model, 2).sum())
    model.train()
    losses = losses_of(model, 3)
    losses.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [*target, alignments(), losses, torch.rand(3), *gradients]


@pytest.mark.parametrize("scope", ["all", "last_block", "head"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma2"])  # gpt2 and bloom drop
def test_nothing_changes_to_the_bit(name: str, scope: Scope) -> None:
    expected, model = everything_of(make_model(name), scope), make_model(name)
    recompute_blocks(model)
    assert all(torch.equal(found, wanted) for found, wanted in zip(everything_of(model, scope), expected, strict=True))


@pytest.mark.parametrize("name", SCORED)
def test_models_of_all_kinds_pass_the_check_and_keep_a_fraction(name: str) -> None:
    kept = kept_bytes(make_model(name))
    model = make_model(name)
    random_state = torch.get_rng_state()
    check_recomputation(model)
    assert torch.equal(torch.get_rng_state(), random_state) and model.training == make_model(name).training
    assert kept_bytes(model) < kept / 2  # the head's logits are kept


def kept_bytes(model: nn.Module) -> int:
    """Bytes that a pass in evaluation mode keeps for its backward pass, parameters left out."""
    sizes: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = losses_of(model.eval(), 1)
    del losses
    return sum(sizes.values())


def test_a_search_is_the_same_to_the_bit(planted_plan: Callable[..., SearchPlan]) -> None:
    settings = {"token_budget": 16 * 32 * 24, "initial_weights": "uniform"}
    plain = search(planted_plan(name="plain", **settings), quiet=True).mixture
    plan = planted_plan("training.activation_checkpointing=true", name="recomputed", **settings)
    assert search(plan, quiet=True).mixture.weights == plain.weights


def test_blocks_that_leave_something_behind_and_models_without_blocks_are_refused() -> None:
    model = make_model("llama")
    model.config.use_cache = True  # keys are added to the cache in either pass
    with pytest.raises(
        RecipeError, match=r"activation_checkpointing: blocks of LlamaForCausalLM have other gradients .*leave it out"
    ):
        check_recomputation(model)
    with pytest.raises(RecipeError, match=r"activation_checkpointing: Linear has no list of blocks.*micro_batch"):
        recompute_blocks(nn.Linear(1, 1))
