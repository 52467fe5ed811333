"""Where a search starts: the mixture that is best by counts of the sources, or the recipe's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from fastmix_data.arrays import Float64s
from train.mixture.count import count_passages, counted_weights
from train.mixture.named_mixtures import stated_start
from train.search.other_documents import document_width
from train.search.plan import SearchPlan


@dataclass(frozen=True, eq=False)
class Start:
    """Where a search starts, and how far other documents of the target would move the answer.

    Attributes:
        initial_K: within the constraints, shape (K,).
        counted_K: what is best by counts, likewise: the start itself, or one of the mixtures that are tried.
        document_width_K: see `other_documents`, shape (K,).
        seconds: of counting.
    """

    initial_K: Float64s
    counted_K: Float64s
    document_width_K: Float64s
    seconds: float


def find_start(plan: SearchPlan) -> Start:
    """The start, the same on all ranks.

    Raises:
        InputError: a source or target is smaller than one sequence.
    """
    return _from_first_rank(lambda: counted_start(plan))


def counted_start(plan: SearchPlan) -> Start:
    """The start, on this process alone."""
    started = time.monotonic()
    count = count_passages(plan.proxy, plan.target.weights())
    counted_K = counted_weights(count, constraints=plan.constraints)
    is_counted = plan.search.initial_weights == "count"
    initial_K = counted_K if is_counted else stated_start(plan.search, plan.catalog, constraints=plan.constraints)
    width_K = document_width(count, constraints=plan.constraints)
    return Start(initial_K, counted_K, width_K, time.monotonic() - started)


def _from_first_rank(make: Callable[[], Start]) -> Start:
    """What the first rank makes, on all of them: machines may differ in the last digit of a sum.

    An error there is raised everywhere, so that no rank waits for one that has left.
    """
    made: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[0] = error
    dist.broadcast_object_list(made, src=0)
    if isinstance(made[0], Exception):
        raise made[0]
    found: Start = made[0]
    return found
