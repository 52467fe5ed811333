"""Per-sequence inner products <v, g_i> of the target gradient with training gradients, out of the training step itself.

With theta' = theta - lr * sum_k p_k g_k the target loss changes by -lr <v, g_k> per unit of p_k (FastMix, arXiv 2606.14971,
eq. 7). <v, g> is linear: for a module with parameters w, input x and output y = f(x; w), a sequence's share of the product is
sum_t d_t . (df/dw [v])_t, where d_t is the gradient that arrives at y_t in the ordinary backward pass. For a linear
layer that is d_t . (V x_t): one more matrix product per layer scores every sequence of the batch, whatever the number of sources.
No parameter gradient is formed and none is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from transformers.pytorch_utils import Conv1D

from fastmix_data.errors import RecipeError
from train.scores.backward_graph import is_within_a_pass, leaves, lowest, outer_pass
from train.scores.module_products import alignment_factors
from train.scores.parameter_shares import Spread, SumIntoShares
from train.scores.scored_modules import Scope, last_block, scored_modules
from train.scores.target_gradient import TargetGradient

REMEDY = "use search.hypergradient: head"


class HypergradientProbe:
    """Takes target gradients and scores sequences against them.

    The model is the bare module (not the engine), so DeepSpeed's gradient hooks never fire for the target gradient. With several ranks all
    of them call every method together.
    """

    def __init__(
        self, model: Any, *, scope: Scope, memory: float = 0.0, with_norms: bool = False, spread: Spread | None = None
    ) -> None:
        """Find the modules that own parameters.

        Args:
            model: a `transformers` causal LM.
            scope: all trainable parameters, those of the last block and all that follows it, or the output head's alone.
            memory: what `remember` keeps of earlier target gradients, in [0, 1).
            with_norms: measure the norm of each scored sequence's gradient too.
            spread: of the target gradient over ranks; None for a single one.
        """
        self._head: nn.Module = model.get_output_embeddings()
        self._scope, self._with_norms = scope, with_norms
        self._last_block = last_block(model) if scope == "last_block" else None
        self._names = {module: name for name, module in model.named_modules()}
        self._owners = scored_modules(model, scope)
        distinct = {id(parameter): parameter for _, own in self._owners for parameter in own.values()}
        self._parameters = list(distinct.values())
        self._index = {key: index for index, key in enumerate(distinct)}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        named = {names[key]: parameter for key, parameter in distinct.items()}
        self._target = TargetGradient(named, memory=memory, spread=spread or Spread())
        self._alignment_B: Tensor | None = None
        self._square_norm_B: Tensor | None = None
        self._seen: set[nn.Module] = set()
        self._outputs: dict[nn.Module, list[GradientEdge]] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the scope, in the order of the target gradient."""
        return self._parameters

    def target_gradient(self, losses: Iterator[Tensor]) -> None:
        """Take the gradient v of the sum of `losses`, over ranks too, in each parameter of the scope, without touching `.grad`.

        Args:
            losses: scalars, each computed lazily by a forward pass, so that only one graph is alive at a time.
        """
        with self._stopped_below_scope(), self._target.sum_of_passes() as passes:
            for loss in losses:
                with passes.next() as into:
                    self._hand_over(loss, into)

    def remember(self) -> None:
        """Score against a weighted mean of this and earlier target gradients, which weigh `memory` times less with each that follows.

        A target batch is small, and the noise of its gradient times that of a source's is most of a score's. Averaging scores divides that
        product by the number of updates; averaging gradients as well divides it by its square.
        """
        self._target.remember()

    def precondition(self, second_moments: Iterable[tuple[int, Tensor]]) -> None:
        """Turn the target gradient v into v / (sqrt(m) + damping), near the direction Adam steps in, so that scores are in its metric.

        The damping is half of the tensor's root mean square. Without it rows of an embedding that training has hardly touched, where m is
        near 0, drown the rest: a step along them promises more than it gives.

        Args:
            second_moments: of each parameter of the scope in order, what this rank holds of m: the first element's number, flat values.
        """
        self._target.precondition(second_moments)

    def whole_target(self) -> list[Tensor]:
        """The target gradient in each parameter of the scope; on a rank that holds all of it, what scoring reads."""
        return self._target.whole(range(len(self._parameters)))

    def release(self) -> None:
        """Let go of the target gradient and of the last scores; what `remember` needs for the next one stays."""
        self._target.release()
        self._alignment_B = self._square_norm_B = None

    def tensors(self) -> dict[str, Any]:
        """What `remember` has kept, as `TargetGradient.tensors` gives it; for checkpoints."""
        return self._target.tensors()

    def load_tensors(self, state: dict[str, Any]) -> None:
        """Restore `tensors` of all ranks, put together as `TargetGradient.load_tensors` takes them."""
        self._target.load_tensors(state)

    def _hand_over(self, loss: Tensor, into: SumIntoShares) -> None:
        """Each gradient is handed over as the pass forms it, and gone once it was added up: never are all of them there."""
        used = leaves(loss)
        for index in reversed(range(len(self._parameters))):
            if id(self._parameters[index]) not in used:
                into.add(index, None)
        with _taken_one_by_one(self._parameters, loss, into.add):
            torch.autograd.grad(loss, self._parameters, allow_unused=True)

    @contextmanager
    def _stopped_below_scope(self) -> Iterator[None]:
        """Passes within the block end at the input of the scope's first module, which tied embeddings would lead past."""
        first = {"all": None, "last_block": self._last_block, "head": self._head}[self._scope]
        handle = first.register_forward_pre_hook(_detach_hidden, with_kwargs=True) if first is not None else None
        try:
            yield
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
        self._alignment_B = self._square_norm_B = None
        self._seen, self._outputs = set(), {}
        handles = [  # prepended: ZeRO-3's own hook lets go of a module's parameters right after its forward pass
            module.register_forward_hook(self._hook(own, batch_shape), with_kwargs=True, prepend=True)
            for module, own in self._owners
        ]
        try:
            yield self._take
        finally:
            for handle in handles:
                handle.remove()
            self._outputs = {}

    def backward(self, loss: Tensor) -> None:
        """The backward pass of scoring: through the outputs of the scored modules, but no gradient of a parameter is formed."""
        outputs = lowest([edge for edges in self._outputs.values() for edge in edges], loss=loss)
        # Of what the pass computes once more no output is known yet: it is come through on the way to its parameters.
        hidden = {id(p): p for module, own in self._owners if module not in self._outputs for p in own.values()}
        with _taken_one_by_one(list(hidden.values()), loss, lambda *_: None):
            into: list[Any] = [*outputs, *hidden.values()]
            torch.autograd.grad(loss, into, allow_unused=True)

    def _take(self) -> Tensor:
        assert self._alignment_B is not None, "no backward pass was made"
        return self._alignment_B

    def unseen(self, used: set[int]) -> list[str]:
        """Names of modules that the scored backward pass did not come through although the loss depends on their parameters.

        Another module uses those parameters by itself, as mamba's mixer does with the weights of its convolution.

        Args:
            used: `leaves` of the loss.
        """
        reached = used & set(self._index)
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
        indices = [self._index[id(parameter)] for parameter in own.values()]
        # Products are made in the model's own precision, so that nothing is lost by sending no more than that.
        dtype = next(iter(own.values())).dtype

        def tangents() -> dict[str, Tensor]:
            return dict(zip(own, self._target.whole(indices, dtype=dtype), strict=True))

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
                factors = alignment_factors(module, args, kwargs, tangents)
            except NotImplementedError:
                raise self._refusal(module, "has an operation without a forward-mode derivative") from None
            inputs = args[0].detach() if args else None

            def after_backward(gradient: Tensor) -> None:
                self._seen.add(module)
                self._add(factors(gradient), batch_shape[0])

            output.register_hook(after_backward)
            if self._with_norms and inputs is not None and isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                output.register_hook(lambda gradient: self._add_norm(inputs, gradient, batch_shape[0]))
            if not is_within_a_pass():
                self._outputs.setdefault(module, []).append(get_gradient_edge(output))

        return after_forward

    def _name(self, module: nn.Module) -> str:
        return self._names[module] or type(module).__name__

    def _refusal(self, module: nn.Module, reason: str) -> RecipeError:
        return RecipeError("proxy", f"{self._name(module)} {reason}", REMEDY)

    def _add(self, factors: list[tuple[Tensor, Tensor]], num_sequences: int) -> None:
        for left, right in factors:
            products = left * right  # of bf16 in bf16: no worse than the rounding of either, at a quarter of the memory traffic
            accumulator = torch.promote_types(products.dtype, torch.float32)
            products = products.reshape(num_sequences, -1).sum(dim=1, dtype=accumulator)
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


@contextmanager
def _taken_one_by_one(parameters: Sequence[nn.Parameter], loss: Tensor, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the block, the backward pass of `loss` gives gradients to `take` as they are formed, and collects none of them."""
    is_outer = outer_pass(loss)

    def hook(index: int, gradient: Tensor | None) -> Tensor | None:
        if gradient is None or not is_outer():
            return None
        take(index, gradient)
        return gradient.new_zeros(()).expand(gradient.shape)  # what `grad` collects in its place takes no memory

    handles = [parameter.register_hook(partial(hook, index)) for index, parameter in enumerate(parameters)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detach_hidden(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}
