"""Blocks of a model of which torch.compile makes faster ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastmix_data.errors import RecipeError
from fastmix_data.messages import first_line
from train.proxy.recomputation import blocks_of


def blocks_to_compile(model: nn.Module) -> nn.ModuleList:
    """The model's blocks.

    Raises:
        RecipeError: it has no list of them.
    """
    blocks = blocks_of(model)
    if blocks is None:
        raise RecipeError("training.compile", f"{type(model).__name__} has no list of blocks to compile", "leave it out")
    return blocks


def compile_blocks(model: nn.Module) -> None:
    """Have each block of a model compiled at its first pass that a gradient is taken of.

    Passes that only measure losses are left as they are: they come in many shapes. So are those that hooks look into, as scores do: what
    hooks see does not exist in a compiled block.

    Raises:
        RecipeError: the model has no list of blocks; at the first pass, where a block cannot be compiled here.
    """
    for block in blocks_to_compile(model):
        _compile(block)


def _compile(block: nn.Module) -> None:
    from torch._dynamo.exc import TorchDynamoException  # takes a second, which only those who compile need to wait

    run, parts = block.forward, [part for part in block.modules() if part is not block]
    compiled: Any = torch.compile(run, dynamic=False)

    # In place of `forward`, inside `__call__`: hooks of the block itself see its real inputs and outputs.
    def forward(*args: Any, **kwargs: Any) -> Any:
        is_looked_into = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        # In training also without a gradient: of a block that is computed once more, the first time.
        has_one_shape = block.training or torch.is_grad_enabled()
        if is_looked_into or not has_one_shape:
            return run(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:  # of the compiler; what a block itself raises comes as it is
            problem = f"torch.compile fails on {type(block).__name__} ({first_line(error)})"
            raise RecipeError("training.compile", problem, "leave it out, or see to the compiler that it names") from error

    block.forward = forward
