"""Derivatives of a module's output along the target gradient in its own parameters, and what of them makes up a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

Tangents = Callable[[], dict[str, Tensor]]  # the target gradient in a module's own parameters by name, to be let go of after use


def alignment_factors(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tangents: Tangents
) -> Callable[[Tensor], list[tuple[Tensor, Tensor]]]:
    """From the gradient at a module's output to pairs of tensors whose products, summed by sequence, are its alignment.

    Linear layers and embeddings need no parameter for it and compute it during the backward pass; anything else takes one forward-mode pass
    now, while ZeRO-3 still holds the parameters: the derivative of its output along `tangents` of its own parameters, at this input.
    """
    if type(module) is nn.Linear:
        inputs = args[0].detach()
        return lambda gradient: _linear_factors(gradient, inputs, **tangents())
    if type(module) is nn.Embedding:
        indices, padding_idx = args[0], module.padding_idx
        return lambda gradient: [(gradient, _without_padding(F.embedding(indices, tangents()["weight"]), indices, padding_idx))]
    tangent = _forward_mode(module, args, kwargs, tangents())
    if isinstance(module, nn.Embedding):  # scaled ones, for example
        tangent = _without_padding(tangent, args[0], module.padding_idx)
    return lambda gradient: [(gradient, tangent)]


def _linear_factors(
    gradient: Tensor, inputs: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """d . (V x) or (V^T d) . x, whichever is the shorter vector: at a head the former is as long as the vocabulary."""
    factors = []
    if weight is not None:
        num_outputs, num_inputs = weight.shape
        if num_outputs > num_inputs:
            factors.append((gradient @ weight.to(gradient.dtype), inputs))
        else:
            factors.append((gradient, F.linear(inputs, weight.to(inputs.dtype))))
    if bias is not None:
        factors.append((gradient, bias.to(inputs.dtype).expand(*inputs.shape[:-1], -1)))
    return factors


def _without_padding(tangent: Tensor, indices: Tensor, padding_idx: int | None) -> Tensor:
    """Autograd gives an embedding's padding row no gradient."""
    return tangent if padding_idx is None else tangent * (indices != padding_idx).unsqueeze(-1)


def _forward_mode(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tangents: dict[str, Tensor]) -> Tensor:
    parameters = dict(module._parameters)
    detached = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
    named = {key: arg.detach() if isinstance(arg, Tensor) else arg for key, arg in kwargs.items()}
    with torch.no_grad(), forward_ad.dual_level():
        try:
            for name, tangent in tangents.items():
                primal = parameters[name]
                assert primal is not None
                dual = forward_ad.make_dual(primal.detach(), tangent.to(primal.dtype).view_as(primal))
                module._parameters[name] = dual
            output = module.forward(*detached, **named)  # not __call__: hooks are for the real pass
        finally:
            for name in tangents:
                module._parameters[name] = parameters[name]
        tangent_out = forward_ad.unpack_dual(output).tangent
    return torch.zeros_like(output) if tangent_out is None else tangent_out
