"""What a backward pass comes through, read off its graph before it is made, and which pass a hook is called in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node


def leaves(loss: Tensor) -> set[int]:
    """The `id` of every tensor without inputs of its own, parameters above all, that a loss depends on."""
    variables = (getattr(node, "variable", None) for node in _children_first(loss))
    return {id(variable) for variable in variables if variable is not None}


def lowest(outputs: Sequence[GradientEdge], *, loss: Tensor) -> list[GradientEdge]:
    """Those of `outputs` that a loss depends on and that depend on no other of them: a pass down to these comes through all."""
    wanted, above = {output.node for output in outputs}, set[Node]()  # above: nodes with a wanted one among their inputs' nodes
    reached = set[Node]()
    for node in _children_first(loss):
        reached.add(node)
        if any(child in wanted or child in above for child in _children(node)):
            above.add(node)
    return [output for output in outputs if output.node in reached and output.node not in above]


def is_within_a_pass() -> bool:
    """Whether a backward pass is being made, which may compute a part of the model once more."""
    return bool(torch._C._current_graph_task_id() != -1)


def outer_pass(loss: Tensor) -> Callable[[], bool]:
    """For hooks of the one backward pass of a loss: whether that is what they are called in, and not a pass within it.

    What is computed once more takes gradients by a pass of its own, which hooks of parameters see too; what it finds is handed to the outer
    pass, where a parameter's gradient is whole.
    """
    numbers: list[int] = []
    loss.register_hook(lambda _: numbers.append(torch._C._current_graph_task_id()))
    return lambda: bool(torch._C._current_graph_task_id() == numbers[0])


def _children_first(loss: Tensor) -> Iterator[Node]:
    """Every node of a loss's graph once, after those that its inputs come from."""
    root = loss.grad_fn
    if root is None:
        return
    seen, path = {root}, [(root, _children(root))]
    while path:
        node, children = path[-1]
        child = next(children, None)
        if child is None:
            path.pop()
            yield node
        elif child not in seen:
            seen.add(child)
            path.append((child, _children(child)))


def _children(node: Any) -> Iterator[Node]:
    return (child for child, _ in node.next_functions if child is not None)
