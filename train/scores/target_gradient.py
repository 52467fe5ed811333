"""The target gradient: summed over passes and ranks as backward passes deliver it, remembered, turned into Adam's metric, looked up.

Between scored steps only what `remember` needs is kept. Where ZeRO spreads gradients over ranks (2 and 3), each rank holds its share of
everything here, and a whole parameter's part is gathered when it is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train.scores.parameter_shares import ParameterShares, Spread, SumIntoShares

# Half a tensor's root mean square. Less lets rows of an embedding that training has hardly touched drown the rest; more ends in the plain
# product, which weighs a step along a parameter by its gradient though Adam does not.
_DAMPING, _TINY = 0.5, 1e-30
# Elements of a parameter that is gathered beforehand with all others of its kind: norms, biases, adapters. Each would be a collective.
_SMALL = 1 << 16


class TargetGradient:
    """Gradients of the target in the parameters of a scope. All ranks call every method together."""

    def __init__(self, parameters: dict[str, nn.Parameter], *, memory: float, spread: Spread) -> None:
        """Nothing is taken yet, nor any memory.

        Args:
            parameters: by name, each once.
            memory: what `remember` keeps of earlier gradients, in [0, 1).
            spread: of every tensor here over the ranks.
        """
        self._names, self._memory = list(parameters), memory
        self._shares = ParameterShares(list(parameters.values()), spread)
        self._small = [index for index in range(len(self._shares)) if self._shares.size(index) <= _SMALL]
        self._values: Tensor | None = None
        self._found: dict[int, Tensor] = {}
        self._remembered: Tensor | None = None
        self._remembered_weight = 0.0

    @contextmanager
    def sum_of_passes(self) -> Iterator[_Passes]:
        """Take a new gradient, the sum over passes and ranks; the one before is let go."""
        self.release()
        self._values = self._shares.zeros()
        yield _Passes(self._shares, self._values)
        self._shares.sum_whole(self._values)

    def remember(self) -> None:
        """Turn the gradient into a weighted mean of this and earlier ones, which weigh `memory` times less with each that follows."""
        if not self._memory:
            return
        values = self._taken()
        if self._remembered is None:
            self._remembered = values.clone()
        else:
            self._remembered.mul_(self._memory).add_(values)
        self._remembered_weight = self._memory * self._remembered_weight + 1
        torch.div(self._remembered, self._remembered_weight, out=values)

    def precondition(self, second_moments: Iterable[tuple[int, Tensor]]) -> None:
        """Turn v into v / (sqrt(m) + damping), near the direction Adam steps in.

        Args:
            second_moments: of each parameter in order, what this rank holds of m: the first element's number and flat values.
        """
        values = self._taken()
        if self._shares.is_whole:
            for index, (_, square) in enumerate(second_moments):
                self._divide(values, index, square, square.mean())
            return
        squares = self._in_shares(list(second_moments))
        # A parameter's mean is over all ranks: one collective for all parameters.
        sums = self._shares.sum_small(torch.stack([square.sum() for square in squares]))
        for index, square in enumerate(squares):
            self._divide(values, index, square, sums[index] / self._shares.size(index))

    def _divide(self, values: Tensor, index: int, square: Tensor, mean: Tensor) -> None:
        self._shares.part(values, index).div_(square.sqrt().add_(_DAMPING * mean.sqrt()).add_(_TINY))

    def _in_shares(self, held: list[tuple[int, Tensor]]) -> list[Tensor]:
        """This rank's shares of values of which each rank holds any part, every element being on one rank.

        ZeRO-3 cuts parameters as shares are cut, and nothing is sent; ZeRO-2 cuts all of them laid end to end.
        """
        shares, values = self._shares, self._taken()
        lie_elsewhere = [
            len(square) != len(shares.part(values, index)) or (len(square) > 0 and first != shares.first(index))
            for index, (first, square) in enumerate(held)
        ]
        if not shares.sum_small(values.new_tensor([float(any(lie_elsewhere))])).item():
            return [square for _, square in held]
        moved = shares.zeros()
        summing = shares.summing(moved)
        for index in reversed(range(len(held))):
            first, square = held[index]
            whole = None
            if len(square):
                whole = square.new_zeros(shares.size(index))
                whole[first : first + len(square)] = square
            summing.add(index, whole)
        summing.finish()
        return [shares.part(moved, index) for index in range(len(held))]

    def whole(self, indices: Sequence[int], *, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The gradient in these parameters, in their shapes; gathered where ranks hold shares, for the caller to let go of.

        Args:
            dtype: what large parameters may be sent in.
        """
        values = self._taken()
        if self._shares.is_whole:
            return self._shares.whole(values, indices)
        if not self._found and self._small:
            self._found = dict(zip(self._small, self._shares.whole(values, self._small), strict=True))
        large = [index for index in indices if index not in self._found]
        gathered = iter(self._shares.whole(values, large, dtype=dtype) if large else [])
        return [self._found[index] if index in self._found else next(gathered) for index in indices]

    def release(self) -> None:
        """Let go of all but what is remembered."""
        self._values = None
        self._found = {}

    def _taken(self) -> Tensor:
        assert self._values is not None, "take a target gradient first"
        return self._values

    def tensors(self) -> dict[str, Any]:
        """What is remembered: its `weight`, and as `shares` of each parameter by name the first element's number and flat values.

        Whole parameters begin at element 0 on every rank, and are the same on all; shares of all ranks make up the whole.
        """
        if self._remembered is None:
            return {"weight": 0.0, "shares": {}}
        parts = {
            name: (self._shares.first(index), self._shares.part(self._remembered, index))
            for index, name in enumerate(self._names)
        }
        return {"weight": self._remembered_weight, "shares": parts}

    def load_tensors(self, state: dict[str, Any]) -> None:
        """Restore what `tensors` gave on any number of ranks.

        Args:
            state: the `weight`, and as `sums` of each parameter by name all its values, flat; none before the first gradient.
        """
        self._remembered_weight, self._remembered = state["weight"], None
        if not state["sums"]:
            return
        self._remembered = self._shares.zeros()
        for index, name in enumerate(self._names):
            self._shares.part(self._remembered, index).copy_(self._shares.cut(state["sums"][name], index))


class _Passes:
    """Into which each backward pass of a sum hands over its gradients."""

    def __init__(self, shares: ParameterShares, total: Tensor) -> None:
        self._shares, self._total = shares, total

    @contextmanager
    def next(self) -> Iterator[SumIntoShares]:
        """A pass; parameters that it hands nothing over for have no gradient in it."""
        summing = self._shares.summing(self._total)
        yield summing
        summing.finish()
