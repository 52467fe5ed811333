"""Which of transformers' models keep packed examples apart is found out by what they compute, not by a list of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from proxy_zoo import REFUSED, SCORED
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.load import load_recipe
from train.proxy.example_check import check_examples_apart
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs
from train.search.plan import plan_search
from train.search.search import search

LENGTH, FIRST, VOCABULARY = 24, 11, 64
CONFIGS = SCORED | {name: config for name, (config, _) in REFUSED.items()}
SEES_NOTHING_BEFORE = {"gemma2", "gpt2", "gptj", "llama", "phi", "qwen3", "mixtral", "qwen2_moe"}


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=VOCABULARY, use_cache=False, **CONFIGS[name]))


def reach_of_the_first_example(name: str) -> float:
    """How far logits of a second example move with the tokens of a first one, relative to the largest of them."""
    model = make_model(name).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens = torch.randint(0, VOCABULARY, (1, LENGTH))
    other = torch.where(torch.arange(LENGTH) < FIRST, (tokens + 7) % VOCABULARY, tokens)
    positions = torch.cat([torch.arange(FIRST), torch.arange(LENGTH - FIRST)])[None]
    with torch.no_grad():
        logits, moved = (
            model(**model_inputs(ModelInputs(part, positions), with_positions=has_learned_positions(model))).logits[:, FIRST:]
            for part in (tokens, other)
        )
    return float((logits - moved).abs().max() / logits.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_passes_exactly_if_no_example_reaches_another(name: str) -> None:
    reach = reach_of_the_first_example(name)
    assert (reach < 1e-5) == (name in SEES_NOTHING_BEFORE)
    if reach < 1e-5:
        check_examples_apart(make_model(name), remedy="use another")
    else:
        assert reach > 1e-3
        with pytest.raises(
            RecipeError, match=r"^proxy: .*ForCausalLM lets examples that share a sequence see each other; use another$"
        ):
            check_examples_apart(make_model(name), remedy="use another")


def test_a_model_that_takes_no_positions_is_refused_with_what_it_said() -> None:
    class Deaf(torch.nn.Module):
        config = AutoConfig.for_model("llama", vocab_size=VOCABULARY)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(
        RecipeError, match=r"Deaf cannot be told where examples begin in a sequence .*position_ids.*; use another"
    ):
        check_examples_apart(Deaf(), remedy="use another")


def write_recipe(planted_recipe: Callable[..., Path], name: str, **settings: Any) -> Path:
    path = planted_recipe(name=name, token_budget=16 * 32 * 12, **settings)
    content = yaml.safe_load(path.read_text())
    content["proxy"] = {"config": {"model_type": name, **CONFIGS[name]}}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"sources": ("noise", "same", "masked")}, "choose one that does not, for example model_type llama$"),
        ({"document_attention": True}, "leave training.document_attention out, or choose one that does not, for example llama$"),
    ],
)
def test_a_search_that_packs_refuses_such_a_proxy_before_training(
    planted_recipe: Callable[..., Path], settings: dict[str, Any], remedy: str
) -> None:
    path = write_recipe(planted_recipe, "mamba", **settings)
    with pytest.raises(RecipeError, match=rf"MambaForCausalLM lets examples .*{remedy}"):
        search(plan_search(load_recipe(path, ["search.hypergradient=head"])), quiet=True)
    assert not (path.with_suffix("") / "search").exists()
