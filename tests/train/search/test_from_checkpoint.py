"""Searches that start from a checkpoint: its own weights, or low-rank adapters in their place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stopped_search import stop_after_a_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.load import load_recipe
from train.proxy.engine import process_group
from train.proxy.losses import ModelInputs
from train.proxy.training import train_on_mixture
from train.search.plan import plan_search
from train.search.search import search

MakeRecipe = Callable[..., Path]
VOCABULARY = 64
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the planted vocabulary."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCABULARY, **SIZES)).save_pretrained(folder)
    return folder


def write_recipe(planted_recipe: MakeRecipe, proxy: Mapping[str, Any], **settings: Any) -> Path:
    path = planted_recipe(token_budget=16 * 32 * 48, learning_rate=1e-2, **settings)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "proxy": dict(proxy)}))
    return path


def test_adapters_learn_the_same_mixture_at_every_zero_stage_and_leave_the_checkpoints_weights(
    planted_recipe: MakeRecipe, checkpoint: Path
) -> None:
    path = write_recipe(planted_recipe, {"checkpoint": str(checkpoint), "lora": {"rank": 4}})
    found = []
    for stage in range(4):
        plan = plan_search(load_recipe(path, [f"deepspeed.zero_stage={stage}"]))
        found.append(search(plan, quiet=True, replace=True).mixture)
    weights = [mixture.weights_K(("noise", "same", "other")) for mixture in found]
    assert all(np.allclose(other, weights[0], atol=1e-4) for other in weights[1:])
    assert weights[0][1] > 1 / 3 > weights[0][0]
    assert found[0].target.loss["unseen_end"] < found[0].target.loss["unseen_start"]


def test_a_stopped_search_of_adapters_goes_on_to_the_same_answer(planted_recipe: MakeRecipe, checkpoint: Path) -> None:
    proxy = {"checkpoint": str(checkpoint), "lora": {}}
    plan = plan_search(load_recipe(write_recipe(planted_recipe, proxy, checkpoint_interval=16)))
    whole = search(plan, quiet=True).mixture
    shutil.rmtree(plan.folder.root)
    stop_after_a_checkpoint(plan)
    assert search(plan, quiet=True).mixture.weights == whole.weights


def test_a_trained_proxy_with_adapters_is_made_again_from_what_it_saved(
    planted_recipe: MakeRecipe, checkpoint: Path, tmp_path: Path
) -> None:
    plan = plan_search(load_recipe(write_recipe(planted_recipe, {"checkpoint": str(checkpoint), "lora": {}}))).proxy
    tokens = ModelInputs(torch.arange(8)[None])
    with process_group(rank=0, world_size=1):
        run = train_on_mixture(plan, np.full(3, 1 / 3), seed=0)
        run.save(tmp_path / "proxy.pt")
        fresh, again = plan.build_engine(seed=1), plan.build_engine(seed=1, parameters=tmp_path / "proxy.pt")
        trained, untrained, restored = (
            engine.bare_token_losses(tokens, tokens.tokens_BT) for engine in (run.engine, fresh, again)
        )
        assert torch.equal(restored, trained) and not torch.allclose(untrained, trained, atol=0.1)
        heads = [engine.module.get_output_embeddings().weight for engine in (run.engine, fresh)]
        assert torch.equal(*heads)
        for engine in (run.engine, fresh, again):
            engine.close()


@pytest.mark.parametrize(
    ("lora", "options", "message"),
    [
        ({"target_modules": ["q_prj"]}, [], r"proxy\.lora: Target modules .*q_prj.* not found.*; name linear modules"),
        ({}, ["search.hypergradient=head"], r"search\.hypergradient: head has nothing that is trained"),
        ({}, ["search.hypergradient=last_block"], ""),
    ],
)
def test_adapters_that_cannot_be_made_or_scored_are_refused(
    planted_recipe: MakeRecipe, checkpoint: Path, lora: dict[str, Any], options: list[str], message: str
) -> None:
    path = write_recipe(planted_recipe, {"checkpoint": str(checkpoint), "lora": lora})
    plan = plan_search(load_recipe(path, options))
    if not message:
        assert search(plan, quiet=True).did_work
        return
    with pytest.raises(RecipeError, match=message):
        search(plan, quiet=True)
    assert not plan.folder.mixture.exists()
