"""Parts of a model that keep nothing but their inputs for the backward pass, which computes them once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fastmix_data.errors import RecipeError
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs, sequence_losses

_CHECKED_SHAPE = 2, 8
_SHAPED = "takes gradients of parameters in parts"
_TOLERANCE = 1e-4  # on CPU they are the same to the bit


def blocks_of(model: nn.Module) -> nn.ModuleList | None:
    """The model's blocks: the longest list of modules that lies outside any other; None where there is none."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    outermost = [blocks for name, blocks in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return max(outermost, key=len, default=None)


def recompute_blocks(model: nn.Module) -> None:
    """Have each block of a model keep its input alone in passes that a gradient is taken of, in training and evaluation mode alike.

    `transformers` has a flag for it that counts in training mode only; scores are taken in evaluation mode.

    Raises:
        RecipeError: the model has no list of blocks.
    """
    blocks = blocks_of(model)
    if blocks is None:
        problem = f"{type(model).__name__} has no list of blocks to compute once more"
        raise RecipeError("training.activation_checkpointing", problem, "leave it out, or lower training.micro_batch")
    for block in blocks:
        _recompute(block)


def check_recomputation(model: Any) -> None:
    """See on a tiny batch that a model's gradients stay what they are when its blocks are computed once more, as they are from then on.

    A block that changes something outside itself, a cache for instance, fails it. The pass is one of training, dropout and all.

    Args:
        model: in float32, as `build_proxy` makes it; one that is thrown away afterwards.

    Raises:
        RecipeError: names the model's class.
    """
    vocab_size = model.config.get_text_config().vocab_size
    tokens_BT = torch.randint(vocab_size, _CHECKED_SHAPE, generator=torch.Generator().manual_seed(0))
    inputs = model_inputs(ModelInputs(tokens_BT), with_positions=has_learned_positions(model))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    random_state, was_training = torch.get_rng_state(), model.training

    def gradients() -> list[Tensor | None]:
        torch.set_rng_state(random_state)
        loss = sequence_losses(model(**inputs).logits, tokens_BT).sum()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    model.train()
    try:
        expected = gradients()
        recompute_blocks(model)
        found = gradients()
    finally:
        model.train(was_training)
        torch.set_rng_state(random_state)
    if not all(_is_close(gradient, wanted) for gradient, wanted in zip(found, expected, strict=True)):
        problem = f"blocks of {type(model).__name__} have other gradients when they are computed once more"
        raise RecipeError("training.activation_checkpointing", problem, "leave it out, or lower training.micro_batch")


def _is_close(gradient: Tensor | None, expected: Tensor | None) -> bool:
    if gradient is None or expected is None:
        return gradient is expected
    return bool((gradient - expected).norm() <= _TOLERANCE * expected.norm())


def _recompute(block: nn.Module) -> None:
    run = block.forward

    # In place of `forward`, inside `__call__`: hooks of the block itself are for the real pass, those of its modules for both.
    def forward(*args: Any, **kwargs: Any) -> Any:
        return recomputed(run, [(args, kwargs)], module=block)[0]

    block.forward = forward


def recomputed(
    run: Callable[..., Any], calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], *, module: nn.Module
) -> list[Any]:
    """What `run` returns for each of several calls, of which nothing but their arguments is kept for the backward pass.

    That one makes each call anew, with the same dropout, and takes its gradient before the next. torch's own checkpoints do not serve
    here: the reentrant kind has no `torch.autograd.grad`, and the other has modules called twice with a graph, where hooks that look
    at inputs would keep them all.

    Args:
        calls: positional and named arguments.
        module: whose parameters `run` uses; sums of their gradients over calls are float32, whatever they are.
    """
    if not torch.is_grad_enabled():
        return [run(*args, **kwargs) for args, kwargs in calls]
    work = _Work(run, calls, [parameter for parameter in module.parameters() if parameter.requires_grad])
    inputs = work.inputs()
    with torch.no_grad(), _seen_whole(work.parameters, module=module):
        outputs = work.run_without_graph(inputs)
        with torch.enable_grad():
            joined: Sequence[Tensor] = _Recomputed.apply(work, outputs, *inputs, *work.parameters)  # type: ignore[no-untyped-call]
    return work.structured(joined)


@contextmanager
def _seen_whole(parameters: Sequence[nn.Parameter], *, module: nn.Module) -> Iterator[None]:
    """Have autograd learn the shapes of parameters that ZeRO-3 holds in parts while passes within the block have them whole.

    Autograd takes a parameter's shape when it first meets it, and keeps to it as long as a graph leads there. A block's parameters
    become part of its graph when the block is over, and they are in parts again.
    """
    left, met = [parameter for parameter in parameters if hasattr(parameter, "ds_shape")], list[Any]()

    def meet(*_: Any) -> None:
        met.extend(_accumulator(parameter) for parameter in left if _is_whole(parameter))
        left[:] = [parameter for parameter in left if not _is_whole(parameter)]

    meet()  # some may still be whole from another use of them
    # Prepended: ZeRO-3's own hook lets go of parameters.
    handles = [part.register_forward_hook(meet, prepend=True) for part in module.modules()] if left else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _accumulator(parameter: Any) -> Any:
    """What takes a parameter's gradient at the end of a backward pass, made to do so when the parameter is in parts again."""
    node: Any = get_gradient_edge(parameter).node
    if _SHAPED not in node.metadata:
        node.metadata[_SHAPED] = True
        parts: list[Tensor] = []

        # It holds the gradient against the parameter's layout, for which a single number that is repeated will do.
        def shape(_: Any) -> None:
            if not _is_whole(parameter):
                parts.append(parameter.data)
                parameter.data = parameter.data.new_empty(()).expand(parameter.ds_shape)

        def restore(*_: Any) -> None:
            if parts:
                parameter.data = parts.pop()

        node.register_prehook(shape)
        node.register_hook(restore)
    return node


def _is_whole(parameter: nn.Parameter) -> bool:
    return bool(parameter.shape == getattr(parameter, "ds_shape", parameter.shape))


class _Work:
    """Calls with their arguments and results as flat lists, for the few of them that are tensors with a gradient."""

    def __init__(
        self,
        run: Callable[..., Any],
        calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
        parameters: list[nn.Parameter],
    ) -> None:
        self.parameters = parameters
        self._run = run
        self._leaves, self._specs = zip(*(tree_flatten(call) for call in calls), strict=True)
        # Of each call, where its differentiable arguments stand. They are kept by autograd, which notices if they are changed meanwhile.
        self._places = [[place for place, leaf in enumerate(leaves) if _is_differentiable(leaf)] for leaves in self._leaves]
        self._results: list[tuple[list[Any], TreeSpec]] = []
        self._random_state = _RandomState.now(leaf for leaves in self._leaves for leaf in leaves if isinstance(leaf, Tensor))

    def inputs(self) -> list[Tensor]:
        """Differentiable arguments of all calls, which are handed over: the work itself lets go of them."""
        found = []
        for leaves, places in zip(self._leaves, self._places, strict=True):
            for place in places:
                found.append(leaves[place])
                leaves[place] = None
        return found

    def call(self, number: int, inputs: Sequence[Tensor]) -> tuple[list[Any], TreeSpec]:
        """Make one call with the inputs given, and flatten its result."""
        leaves = list(self._leaves[number])
        for place, value in zip(self._places[number], inputs, strict=True):
            leaves[place] = value
        args, kwargs = tree_unflatten(leaves, self._specs[number])
        return tree_flatten(self._run(*args, **kwargs))

    def split(self, inputs: Sequence[Tensor]) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """The number of each call with its part of the inputs."""
        start = 0
        for number, places in enumerate(self._places):
            yield number, inputs[start : start + len(places)]
            start += len(places)

    def run_without_graph(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """All calls; the tensors of their results."""
        outputs: list[Tensor] = []
        for number, own in self.split(inputs):
            leaves, spec = self.call(number, own)
            outputs += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            self._results.append(([_Place() if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec))
        return outputs

    def structured(self, outputs: Sequence[Tensor]) -> list[Any]:
        """Results of all calls, around their tensors."""
        tensors = iter(outputs)
        return [
            tree_unflatten([next(tensors) if isinstance(leaf, _Place) else leaf for leaf in leaves], spec)
            for leaves, spec in self._results
        ]

    def gradients(self, inputs: Sequence[Tensor], arriving: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Make the calls again with a graph, and take the gradients of inputs and parameters from those that arrive at the results."""
        found: list[Tensor | None] = []
        totals: list[Tensor | None] = [None] * len(self.parameters)
        left = iter(arriving)
        with self._random_state.again(), torch.enable_grad():
            for number, own in self.split(inputs):
                fresh = [value.detach().requires_grad_() for value in own]
                leaves, _ = self.call(number, fresh)
                pairs = [(leaf, next(left)) for leaf in leaves if isinstance(leaf, Tensor)]
                used = [(leaf, gradient) for leaf, gradient in pairs if gradient is not None and leaf.requires_grad]
                if not used:
                    found += [None] * len(fresh)
                    continue
                results, received = zip(*used, strict=True)
                del leaves, pairs, used
                taken = torch.autograd.grad(results, [*fresh, *self.parameters], received, allow_unused=True)
                found += taken[: len(fresh)]
                _add(totals, taken[len(fresh) :], is_only=len(self._places) == 1)
        return [*found, *(None if t is None else t.to(p.dtype) for t, p in zip(totals, self.parameters, strict=True))]


class _Place:
    """Stands for a tensor in a result."""


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, outputs: list[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.work = work
        ctx.save_for_backward(*tensors[: len(tensors) - len(work.parameters)])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if all(gradient is None for gradient in arriving):
            return (None,) * (2 + len(inputs) + len(ctx.work.parameters))
        return None, None, *ctx.work.gradients(inputs, arriving)


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _add(totals: list[Tensor | None], gradients: Sequence[Tensor | None], *, is_only: bool) -> None:
    for number, gradient in enumerate(gradients):
        if gradient is None:
            continue
        total = totals[number]
        if total is not None:
            total += gradient
        else:
            totals[number] = gradient if is_only else gradient.to(torch.promote_types(gradient.dtype, torch.float32))


class _RandomState:
    """Where torch's random numbers stood, on the CPU and on the GPU that tensors of a pass are on."""

    def __init__(self, state: Tensor, gpu: torch.device | None) -> None:
        self._state, self._gpu = state, gpu
        self._gpu_state = torch.cuda.get_rng_state(gpu) if gpu is not None else None

    @classmethod
    def now(cls, tensors: Iterator[Tensor]) -> _RandomState:
        """The state at this moment."""
        return cls(torch.get_rng_state(), next((tensor.device for tensor in tensors if tensor.is_cuda), None))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers within the block, and go on after it as if none had been drawn."""
        with torch.random.fork_rng(devices=[] if self._gpu is None else [self._gpu]):
            torch.set_rng_state(self._state)
            if self._gpu is not None and self._gpu_state is not None:
                torch.cuda.set_rng_state(self._gpu_state, self._gpu)
            yield
