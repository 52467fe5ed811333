"""Proxies trained side by side against each of them trained alone, parameter by parameter, and what is refused instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.proxy import LoraSection, ProxySection
from train.proxy.engine import process_group
from train.proxy.training import ProxyPlan, train_on_mixture
from train.search.plan import plan_search
from train.side_by_side.stacked import StackedProxies
from train.side_by_side.training import train_side_by_side
from train.side_by_side.trial import try_side_by_side

PLAIN, PACKED = ("noise", "same", "other"), ("noise", "same", "masked")
WEIGHTS_NK = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.05, 0.15, 0.8]])
SEEDS = (3, 3, 4)
CPU = torch.device("cpu")
_DENSE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
LLAMA: dict[str, Any] = {"model_type": "llama", **_DENSE}
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MISTRAL: dict[str, Any] = {"model_type": "mistral", **_DENSE, "num_key_value_heads": 1}


@pytest.fixture
def make_plan(planted_recipe: Callable[..., Path]) -> Callable[..., ProxyPlan]:
    """Of four steps; `training` changes keys of the training section."""

    def make(sources: tuple[str, ...] = PLAIN, config: dict[str, Any] = LLAMA, **training: Any) -> ProxyPlan:
        plan = plan_search(load_recipe(planted_recipe(sources=sources))).proxy
        training = {"learning_rate": 1e-3, **training}
        proxy = plan.proxy.model_copy(update={"config": config})
        return replace(plan, proxy=proxy, training=plan.training.model_copy(update=training)).with_steps(4)

    return make


def trained_alone(plan: ProxyPlan, weights_K: np.ndarray, seed: int) -> dict[str, torch.Tensor]:
    with process_group(rank=0, world_size=1):
        engine = train_on_mixture(plan, weights_K, seed=seed).engine
        state = {name: value.clone() for name, value in engine.module.state_dict().items()}
        engine.close()
    return state


@pytest.mark.parametrize(
    ("sources", "config", "training"),
    [
        (PLAIN, LLAMA, {}),
        (PACKED, LLAMA, {"gradient_clipping": 0.1, "weight_decay": 0.5, "locality_window": 8}),
        (PLAIN, {**LLAMA, "tie_word_embeddings": True}, {"document_attention": True, "gradient_clipping": 0.0}),
        (PACKED, MISTRAL, {"micro_batch": 4}),
        (PACKED, {**GPT2, **WITHOUT_DROPOUT}, {"global_batch": 8}),
    ],
    ids=["text", "packed examples", "documents, tied", "shared keys in micro-batches", "gpt2"],
)
def test_every_proxy_is_the_one_trained_alone(
    make_plan: Callable[..., ProxyPlan], sources: tuple[str, ...], config: dict[str, Any], training: dict[str, Any]
) -> None:
    plan = make_plan(sources, config, **training)
    assert try_side_by_side(plan, device=CPU).most_at_once > 3
    assert_same_as_alone(plan)


def test_adapters_of_a_checkpoint_are_those_trained_alone_and_share_its_weights(
    make_plan: Callable[..., ProxyPlan], tmp_path: Path
) -> None:
    plan = make_plan(PACKED)
    model: Any = plan.build_model(seed=0)
    model.save_pretrained(tmp_path / "base")
    plan = replace(plan, proxy=ProxySection(checkpoint=str(tmp_path / "base"), lora=LoraSection(rank=2)))
    assert assert_same_as_alone(plan).rows_NP.shape[1] < sum(parameter.numel() for parameter in model.parameters())


def assert_same_as_alone(plan: ProxyPlan) -> StackedProxies:
    """Train side by side, and each alone."""
    steps: list[int] = []
    run = train_side_by_side(plan, WEIGHTS_NK, seeds=SEEDS, device=CPU, on_step=steps.append)
    assert steps == [1, 2, 3, 4] and run.is_finite_N.all()
    for number, (weights_K, seed) in enumerate(zip(WEIGHTS_NK, SEEDS, strict=True)):
        expected, found = trained_alone(plan, weights_K, seed), run.proxies.state_dict(number)
        assert found.keys() == expected.keys()
        worst = max(float((found[name] - value).abs().max()) for name, value in expected.items())
        # Adam makes steps of about 1e-3 of the smallest gradients too, in which rounding is seen.
        assert worst < 1e-5
    return run.proxies


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2, r"GPT2LMHeadModel cannot be stacked \(.*random"),
        ({**MISTRAL, "sliding_window": 5}, "MistralForCausalLM computes something else when it is given a mask"),
        (
            {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
            "MambaForCausalLM cannot be stacked",
        ),
    ],
    ids=["dropout", "sliding window", "no attention"],
)
def test_what_would_be_another_proxy_side_by_side_is_not_trained_so(
    make_plan: Callable[..., ProxyPlan], config: dict[str, Any], reason: str
) -> None:
    trial = try_side_by_side(make_plan(config=config), device=CPU)
    assert trial.most_at_once == 0 and re.match(reason, trial.why_not), trial.why_not
