"""Per-sequence inner products <v, g_i> of the target gradient with training gradients, out of the training step itself.

With theta' = theta - lr * sum_k p_k g_k the target loss changes by -lr <v, g_k> per unit of p_k (FastMix, arXiv 2606.14971,
eq. 7). <v, g> is linear: for a module with parameters w, input x and output y = f(x; w), a sequence's share of the product is
sum_t d_t . (df/dw [v])_t, where d_t is the gradient that arrives at y_t in the ordinary backward pass. For a linear
layer that is d_t . (V x_t): one more matrix product per layer scores every sequence of the batch, whatever the number of sources.
No parameter gradient is formed and none is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fastmix_data.errors import RecipeError
from train.proxy.recomputation import blocks_of

# Half a tensor's root mean square. Less lets rows of an embedding that training has hardly touched drown the rest; more ends in the plain
# product, which weighs a step along a parameter by its gradient though Adam does not.
_DAMPING, _TINY = 0.5, 1e-30
REMEDY = "use search.hypergradient: head"
Scope = Literal["all", "last_block", "head"]


class HypergradientProbe:
    """Takes target gradients and scores sequences against them.

    The model is the bare module (not the engine), so DeepSpeed's gradient hooks never fire for the target gradient.
    """

    def __init__(self, model: Any, *, scope: Scope, memory: float = 0.0, with_norms: bool = False) -> None:
        """Find the modules that own parameters.

        Args:
            model: a `transformers` causal LM.
            scope: all trainable parameters, those of the last block and all that follows it, or the output head's alone.
            memory: what `remember` keeps of earlier target gradients, in [0, 1).
            with_norms: measure the norm of each scored sequence's gradient too.
        """
        self._head: nn.Module = model.get_output_embeddings()
        self._scope, self._memory, self._with_norms = scope, memory, with_norms
        self._last_block = _last_block(model) if scope == "last_block" else None
        if scope == "head":
            modules = [self._head]
        else:
            modules = list(model.modules()) if self._last_block is None else _from_last_block_on(model, self._head)
        self._names = {module: name for name, module in model.named_modules()}
        self._owners: list[tuple[nn.Module, dict[str, nn.Parameter]]] = []
        for module in modules:
            own = {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
            if own:
                self._owners.append((module, own))
        if not self._owners:
            raise RecipeError("search.hypergradient", f"{scope} has nothing that is trained", "use search.hypergradient: all")
        distinct = {id(parameter): parameter for _, own in self._owners for parameter in own.values()}
        self._parameters = list(distinct.values())
        self._target: dict[int, Tensor] = {}
        self._remembered: list[Tensor] = []
        self._remembered_weight = 0.0
        self._alignment_B: Tensor | None = None
        self._square_norm_B: Tensor | None = None
        self._seen: set[nn.Module] = set()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the scope, in the order of the target gradient."""
        return self._parameters

    def target_gradient(self, losses: Iterator[Tensor]) -> list[Tensor]:
        """Gradient v of the sum of `losses` in each parameter of the scope, without touching `.grad`.

        Args:
            losses: scalars, each computed lazily by a forward pass, so that only one graph is alive at a time.

        Returns:
            Tensors to reduce over ranks in place, before `remember` and scoring.
        """
        totals: list[Tensor] | None = None
        for gradients in self._gradients(losses):
            if totals is None:
                totals = gradients
            else:
                for total, gradient in zip(totals, gradients, strict=True):
                    total += gradient
        assert totals is not None
        self._target = {id(p): v for p, v in zip(self._parameters, totals, strict=True)}
        return totals

    def remember(self) -> None:
        """Score against a weighted mean of this and earlier target gradients, which weigh `memory` times less with each that follows.

        A target batch is small, and the noise of its gradient times that of a source's is most of a score's. Averaging scores divides that
        product by the number of updates; averaging gradients as well divides it by its square.
        """
        if not self._memory:
            return
        gradients = list(self._target.values())
        if self._remembered:
            for total, gradient in zip(self._remembered, gradients, strict=True):
                total.mul_(self._memory).add_(gradient)
        else:
            self._remembered = [gradient.clone() for gradient in gradients]
        self._remembered_weight = self._memory * self._remembered_weight + 1
        for total, gradient in zip(self._remembered, gradients, strict=True):
            torch.div(total, self._remembered_weight, out=gradient)

    def tensors(self) -> dict[str, Any]:
        """What `remember` has kept, the same on all ranks; for checkpoints."""
        return {"sums": self._remembered, "weight": self._remembered_weight}

    def load_tensors(self, state: dict[str, Any]) -> None:
        """Restore `tensors`."""
        sums = state["sums"]  # one for each parameter, or none before the first target gradient
        self._remembered = [total.to(p.device) for total, p in zip(sums, self._parameters, strict=bool(sums))]
        self._remembered_weight = state["weight"]

    def precondition(self, second_moments: Sequence[Tensor]) -> None:
        """Turn the target gradient v into v / (sqrt(m) + damping), near the direction Adam steps in, so that scores are in its metric.

        The damping is half of the tensor's root mean square. Without it rows of an embedding that training has hardly touched, where m is
        near 0, drown the rest: a step along them promises more than it gives.

        Args:
            second_moments: m of each parameter of the scope, in the order of `parameters`.
        """
        for v, square in zip(self._target.values(), second_moments, strict=True):
            v /= square.sqrt() + _DAMPING * square.mean().sqrt() + _TINY

    def _gradients(self, losses: Iterator[Tensor]) -> Iterator[list[Tensor]]:
        """Of each loss; the backward pass stops at the input of the scope's first module, which tied embeddings would lead past."""
        first = {"all": None, "last_block": self._last_block, "head": self._head}[self._scope]
        handle = first.register_forward_pre_hook(_detach_hidden, with_kwargs=True) if first is not None else None
        try:
            for loss in losses:
                found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
                yield [_zeros(p) if g is None else _at_least_float32(g) for g, p in zip(found, self._parameters, strict=True)]
        finally:
            if handle is not None:
                handle.remove()

    @contextmanager
    def scoring(self, batch_shape: tuple[int, int]) -> Iterator[Callable[[], Tensor]]:
        """Score the sequences of the forward and backward pass made within the block.

        Args:
            batch_shape: (B, T) of the pass; activations lead with B, or with B * T where a model merges the two.

        Yields:
            A function that gives, after the backward pass, <v, gradient of the backpropagated loss through sequence i>, shape (B,).
            The loss's own factors are in it: divide by the sequence's factor to have it per unit of token loss.
        """
        assert self._target, "take a target gradient first"
        self._alignment_B = self._square_norm_B = None
        self._seen = set()
        handles = [  # prepended: ZeRO-3's own hook lets go of a module's parameters right after its forward pass
            module.register_forward_hook(self._hook(own, batch_shape), with_kwargs=True, prepend=True)
            for module, own in self._owners
        ]
        try:
            yield self._take
        finally:
            for handle in handles:
                handle.remove()

    def backward(self, loss: Tensor) -> None:
        """The backward pass of scoring, down to the scope's parameters, whose gradients are dropped: nothing moves by it."""
        torch.autograd.grad(loss, self._parameters, allow_unused=True)

    def _take(self) -> Tensor:
        assert self._alignment_B is not None, "no backward pass was made"
        return self._alignment_B

    def unseen(self, gradients: Sequence[Tensor | None]) -> list[str]:
        """Names of modules that the scored backward pass did not come through although `gradients` reached their parameters.

        Another module uses those parameters by itself, as mamba's mixer does with the weights of its convolution.
        """
        reached = {id(p) for p, gradient in zip(self._parameters, gradients, strict=True) if gradient is not None}
        passed_by = [module for module, own in self._owners if module not in self._seen and reached & set(map(id, own.values()))]
        return [self._name(module) for module in passed_by]

    def norms(self) -> Tensor:
        """After the backward pass: the norm of each sequence's gradient, shape (B,), with the loss's factors in it.

        Of the weights of linear layers and embeddings; biases and norms, a thousandth of the parameters, are left out, and a tied
        matrix counts once in either role. For a linear layer the square is sum_tu (d_t . d_u)(x_t . x_u), so that no parameter
        gradient is formed (Goodfellow, arXiv 1510.01799, for sequences).
        """
        assert self._square_norm_B is not None, "no layer's norm was measured; make the probe with_norms"
        return self._square_norm_B.sqrt()

    def _hook(self, own: dict[str, nn.Parameter], batch_shape: tuple[int, int]) -> Callable[..., None]:
        tangents = {name: self._target[id(parameter)] for name, parameter in own.items()}

        def after_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise self._refusal(module, f"returns a {type(output).__name__}, which cannot be split by sequence")
            if not output.requires_grad:  # the first, graph-less pass of what is computed once more
                return
            if output.shape[0] not in (batch_shape[0], batch_shape[0] * batch_shape[1]):
                raise self._refusal(module, f"has an output of shape {tuple(output.shape)}, which cannot be split by sequence")
            # A sequence's norm is of products of any two of its tokens.
            assert not self._with_norms or module is not self._head or output.numel() == output.shape[-1] * math.prod(batch_shape)
            try:
                factors = _alignment_factors(module, args, kwargs, tangents)
            except NotImplementedError:
                raise self._refusal(module, "has an operation without a forward-mode derivative") from None
            inputs = args[0].detach() if args else None

            def after_backward(gradient: Tensor) -> None:
                self._seen.add(module)
                self._add(factors(gradient), batch_shape[0])

            output.register_hook(after_backward)
            if self._with_norms and inputs is not None and isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                output.register_hook(lambda gradient: self._add_norm(inputs, gradient, batch_shape[0]))

        return after_forward

    def _name(self, module: nn.Module) -> str:
        return self._names[module] or type(module).__name__

    def _refusal(self, module: nn.Module, reason: str) -> RecipeError:
        return RecipeError("proxy", f"{self._name(module)} {reason}", REMEDY)

    def _add(self, factors: list[tuple[Tensor, Tensor]], num_sequences: int) -> None:
        for left, right in factors:
            accumulator = torch.float64 if left.dtype == torch.float64 else torch.float32
            products = (left.to(accumulator) * right.to(accumulator)).reshape(num_sequences, -1).sum(dim=1)
            self._alignment_B = products if self._alignment_B is None else self._alignment_B + products

    def _add_norm(self, inputs: Tensor, gradient: Tensor, num_sequences: int) -> None:
        delta_BTO = gradient.float().reshape(num_sequences, -1, gradient.shape[-1])
        if inputs.is_floating_point():
            inputs_BTI = inputs.float().reshape(num_sequences, -1, inputs.shape[-1])
            gram_BTT = inputs_BTI @ inputs_BTI.mT
        else:  # an embedding's input is one-hot
            indices_BT = inputs.reshape(num_sequences, -1)
            gram_BTT = (indices_BT[:, :, None] == indices_BT[:, None, :]).float()
        squares_B = ((delta_BTO @ delta_BTO.mT) * gram_BTT).sum(dim=(1, 2)).clamp_min(0)
        self._square_norm_B = squares_B if self._square_norm_B is None else self._square_norm_B + squares_B


def _last_block(model: nn.Module) -> nn.Module:
    blocks = blocks_of(model)
    if blocks is None:
        raise RecipeError("proxy", f"{type(model).__name__} has no list of blocks", "use search.hypergradient: all or head")
    return blocks[-1]


def _from_last_block_on(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The modules of the last block, those registered after it, and the head."""
    every = list(model.modules())
    start = every.index(_last_block(model))
    return [*every[start:], *([head] if head not in every[start:] else [])]


def _detach_hidden(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}


def _alignment_factors(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tangents: dict[str, Tensor]
) -> Callable[[Tensor], list[tuple[Tensor, Tensor]]]:
    """From the gradient at a module's output to pairs of tensors whose products, summed by sequence, are its alignment.

    Linear layers and embeddings need no parameter for it and compute it during the backward pass; anything else takes one forward-mode pass
    now, while ZeRO-3 still holds the parameters: the derivative of its output along `tangents` of its own parameters, at this input.
    """
    if type(module) is nn.Linear:
        inputs = args[0].detach()
        return lambda gradient: _linear_factors(gradient, inputs, tangents.get("weight"), tangents.get("bias"))
    if type(module) is nn.Embedding:
        indices, padding_idx = args[0], module.padding_idx
        return lambda gradient: [(gradient, _without_padding(F.embedding(indices, tangents["weight"]), indices, padding_idx))]
    tangent = _forward_mode(module, args, kwargs, tangents)
    if isinstance(module, nn.Embedding):  # scaled ones, for example
        tangent = _without_padding(tangent, args[0], module.padding_idx)
    return lambda gradient: [(gradient, tangent)]


def _linear_factors(gradient: Tensor, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> list[tuple[Tensor, Tensor]]:
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


def _zeros(parameter: nn.Parameter) -> Tensor:
    """Zeros of a parameter's whole shape, which ZeRO-3 keeps aside while the parameter is partitioned."""
    return _at_least_float32(parameter.new_zeros(getattr(parameter, "ds_shape", parameter.shape)))


def _at_least_float32(gradient: Tensor) -> Tensor:
    """A copy that can be summed over passes and ranks without losing digits."""
    return gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32), copy=True)


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
