"""Which modules are scored: those that own the parameters of a scope."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from fastmix_data.errors import RecipeError
from train.proxy.recomputation import blocks_of

Scope = Literal["all", "last_block", "head"]


def scored_modules(model: Any, scope: Scope) -> list[tuple[nn.Module, dict[str, nn.Parameter]]]:
    """Modules that own trained parameters of a scope, each with those by their names in it.

    Raises:
        RecipeError: there are none.
    """
    head: nn.Module = model.get_output_embeddings()
    modules = [head]
    if scope == "all":
        modules = list(model.modules())
    elif scope == "last_block":
        modules = _from_last_block_on(model, head)
    owned = [(module, {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}) for module in modules]
    found = [(module, own) for module, own in owned if own]
    if not found:
        raise RecipeError("search.hypergradient", f"{scope} has nothing that is trained", "use search.hypergradient: all")
    return found


def last_block(model: nn.Module) -> nn.Module:
    """The last of the model's blocks."""
    blocks = blocks_of(model)
    if blocks is None:
        raise RecipeError("proxy", f"{type(model).__name__} has no list of blocks", "use search.hypergradient: all or head")
    return blocks[-1]


def _from_last_block_on(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The modules of the last block, those registered after it, and the head."""
    every = list(model.modules())
    start = every.index(last_block(model))
    return [*every[start:], *([head] if head not in every[start:] else [])]
