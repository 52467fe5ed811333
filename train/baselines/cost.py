"""What finding a mixture costs: tokens, floating point operations, seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from train.proxy.training import ProxyPlan


@dataclass(frozen=True)
class SearchCost:
    """Cost of a search.

    Attributes:
        tokens: training tokens of all proxies, and target tokens that gradients were taken of.
        flops: 6 N per token with a backward pass, 2 N per token of a forward pass alone; N is `matmul_parameters`.
        seconds: machine time: of every proxy run, also of those that ran at once, and of fitting.
    """

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: SearchCost) -> SearchCost:
        """Both together."""
        return SearchCost(self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds)


def flops(num_parameters: int, *, trained: int = 0, forward_only: int = 0) -> float:
    """Operations of passes over tokens, with and without a backward pass (Kaplan et al., arXiv 2001.08361).

    >>> flops(10, trained=2, forward_only=3)
    180.0
    """
    return 6.0 * num_parameters * trained + 2.0 * num_parameters * forward_only


def matmul_parameters(plan: ProxyPlan) -> int:
    """Parameters of the proxy that take part in matrix products: all but the input embedding, unless the output head is tied to it."""
    # Shapes are enough: nothing is allocated or initialised.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plan.config)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return int(num_parameters if embedding is head else num_parameters - embedding.numel())
