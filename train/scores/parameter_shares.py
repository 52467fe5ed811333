"""Where values that belong to parameters lie: whole on every rank, or one share of each parameter on each rank.

A share is a run of consecutive elements of the flattened parameter, the same that ZeRO-3 cuts: ceil(n / ranks) of them, fewer at the end.
A rank's shares lie one after the other in one flat tensor, in the reverse order of the parameters, in which a backward pass
delivers gradients, so that they can be sent in buckets while the pass goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Elements of one collective: 64 MB in float32. Beside it a rank holds the gradients of about one block.
_BUCKET_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Spread:
    """The ranks, and whether each holds a share of every parameter's values or all of them."""

    rank: int = 0
    num_ranks: int = 1
    sharded: bool = False


class ParameterShares:
    """The layout of one number for each element of the parameters, in float32 at least.

    All ranks call every method that says so together, in the same order.

    Attributes:
        is_whole: whether this rank's share is everything.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], spread: Spread) -> None:
        """Lay the shares out; parameters that ZeRO-3 has partitioned count with their whole shape."""
        self._spread = spread
        self._num_shares = spread.num_ranks if spread.sharded else 1
        self.is_whole = self._num_shares == 1
        self._shapes = [torch.Size(getattr(parameter, "ds_shape", parameter.shape)) for parameter in parameters]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._widths = [-(-size // self._num_shares) for size in self._sizes]
        self._starts, self._end = [0] * len(parameters), 0
        for index in reversed(range(len(parameters))):
            self._starts[index] = self._end
            self._end += self._widths[index]
        self._dtype = max((torch.promote_types(p.dtype, torch.float32) for p in parameters), key=lambda dtype: dtype.itemsize)
        self._device = parameters[0].device

    def __len__(self) -> int:
        return len(self._sizes)

    def size(self, index: int) -> int:
        """Elements of a parameter."""
        return self._sizes[index]

    def zeros(self) -> Tensor:
        """A zero for each element of this rank's shares, flat, each share padded to the first rank's width."""
        return torch.zeros(self._end, dtype=self._dtype, device=self._device)

    def first(self, index: int) -> int:
        """Number of the first element of this rank's share of a parameter."""
        return 0 if self.is_whole else min(self._sizes[index], self._spread.rank * self._widths[index])

    def part(self, values: Tensor, index: int) -> Tensor:
        """This rank's share of a parameter within `values`, flat and without padding: a view."""
        start, length = self._starts[index], min(self._widths[index], self._sizes[index] - self.first(index))
        return values[start : start + length]

    def cut(self, whole: Tensor, index: int) -> Tensor:
        """This rank's share of a parameter's whole values, flat: a view."""
        first = self.first(index)
        return whole.reshape(-1)[first : first + self._widths[index]]

    def whole(self, values: Tensor, indices: Sequence[int], *, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The whole values of some parameters, in their shapes; all ranks together, in one collective, unless they are there.

        Args:
            dtype: what is sent where anything is; None for that of `values`.
        """
        if self.is_whole:
            return [self.part(values, index).view(self._shapes[index]) for index in indices]
        mine = [values[self._starts[index] : self._starts[index] + self._widths[index]] for index in indices]
        sent = (mine[0] if len(mine) == 1 else torch.cat(mine)).to(dtype or values.dtype)
        gathered = sent.new_empty(self._num_shares, sent.numel())
        dist.all_gather_into_tensor(gathered.view(-1), sent.contiguous())
        columns = gathered.split([self._widths[index] for index in indices], dim=1)
        return [
            found.reshape(-1)[: self._sizes[index]].view(self._shapes[index])
            for found, index in zip(columns, indices, strict=True)
        ]

    def sum_whole(self, values: Tensor) -> None:
        """Add `values` up over ranks in place where each holds all of them; shares are summed as they are formed. All ranks together."""
        if self.is_whole and self._spread.num_ranks > 1:
            dist.all_reduce(values)

    def sum_small(self, values: Tensor) -> Tensor:
        """Add up over the ranks that have shares, in place: a few numbers of each. All ranks together."""
        if not self.is_whole:
            dist.all_reduce(values)
        return values

    def summing(self, total: Tensor) -> SumIntoShares:
        """For adding whole values of each parameter into this rank's shares `total`; see there."""
        return SumIntoShares(total, sizes=self._sizes, widths=self._widths, num_shares=self._num_shares, parts=self)


class SumIntoShares:
    """Adds up values over ranks, parameter by parameter, into shares: what was handed over is gone once its bucket was sent.

    Buckets are cut from the layout, not from what was handed over, so that every rank makes the same collectives in the same order, also
    where its pass delivers gradients in another order or leaves some out. What comes before its turn waits.
    """

    def __init__(self, total: Tensor, *, sizes: list[int], widths: list[int], num_shares: int, parts: ParameterShares) -> None:
        """Begin a round; `finish` ends it."""
        self._total, self._sizes, self._widths, self._num_shares, self._parts = total, sizes, widths, num_shares, parts
        self._turns = list(range(len(sizes)))  # popped from the end: the layout's order
        self._waiting: dict[int, Tensor | None] = {}
        self._sent, self._filled = 0, 0
        self._bucket: Tensor | None = None

    def add(self, index: int, values: Tensor | None) -> None:
        """Hand over a parameter's whole values of this rank, once in a round; None where it has none, so that others need not wait."""
        if self._num_shares == 1:
            if values is not None:
                self._parts.part(self._total, index).add_(values.reshape(-1))
            return
        self._waiting[index] = values
        while self._turns and self._turns[-1] in self._waiting:
            index = self._turns.pop()
            self._fill(self._waiting.pop(index), self._widths[index])

    def finish(self) -> None:
        """Send what is left; parameters that were not handed over count as zeros."""
        while self._num_shares > 1 and self._turns:
            index = self._turns.pop()
            self._fill(self._waiting.pop(index, None), self._widths[index])

    def _fill(self, values: Tensor | None, width: int) -> None:
        """Copy a parameter into the bucket, a row for each rank, and send buckets as they are full."""
        done = 0
        while done < width:
            if self._bucket is None:
                columns = min(max(1, _BUCKET_ELEMENTS // self._num_shares), len(self._total) - self._sent)
                self._bucket = self._total.new_zeros(self._num_shares, columns)
            count = min(width - done, self._bucket.shape[1] - self._filled)
            if values is not None:
                into, flat = self._bucket[:, self._filled : self._filled + count], values.reshape(-1)
                num_full = len(flat) // width
                into[:num_full] = flat[: num_full * width].view(num_full, width)[:, done : done + count]
                rest = flat[num_full * width :][done : done + count]  # of the rank that the parameter ends on
                if len(rest):
                    into[num_full, : len(rest)] = rest
            done += count
            self._filled += count
            if self._filled == self._bucket.shape[1]:
                self._send(self._bucket)
                self._bucket, self._filled = None, 0

    def _send(self, bucket: Tensor) -> None:
        received = bucket.new_empty(bucket.shape[1])
        dist.reduce_scatter_tensor(received, bucket.view(-1))
        self._total[self._sent : self._sent + len(received)] += received
        self._sent += len(received)
