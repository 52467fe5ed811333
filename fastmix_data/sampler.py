"""Which sequences make up a global batch: deterministic, seekable, and its weights may change at any step.

The plan of the global batch is a pure function of (seed, state, weights). World size, gradient accumulation and loader workers never
enter: a rank takes its slice of the plan. Counts follow the weights by error diffusion; within a source, each epoch is a keyed
permutation evaluated at the positions that are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Float64s, Int64s
from fastmix_data.errors import MismatchError
from fastmix_data.permutation import derive_keys, permute

_SHUFFLE_STREAM, _EPOCH_STREAM, _WINDOW_STREAM = 1, 2, 3


@dataclass(frozen=True)
class BatchPlan:
    """A batch: for each sequence the index of its source and its number within the source, both of shape (B,)."""

    source_B: Int64s
    sequence_B: Int64s

    def slice(self, part: int, num_parts: int) -> Self:
        """The `part`-th of `num_parts` runs of the batch, whose sizes differ by one at most."""
        bounds = [len(self.source_B) * edge // num_parts for edge in (part, part + 1)]
        return type(self)(self.source_B[bounds[0] : bounds[1]], self.sequence_B[bounds[0] : bounds[1]])


def apportion(credits_K: Float64s, *, num_draws: int) -> Int64s:
    """Whole draws for fractional credits: non-negative, sum `num_draws`, as near to the credits as possible.

    Args:
        credits_K: owed draws, shape (K,), sum `num_draws`; may be negative where a source is ahead.

    >>> apportion(np.array([1.6, 1.7, -0.3]), num_draws=3)
    array([1, 2, 0])
    """
    # A source that is ahead has negative credit, but cannot give sequences back: it draws none, and the others draw less.
    counts_K = np.maximum(np.floor(credits_K), 0).astype(np.int64)
    missing = num_draws - int(counts_K.sum())
    while missing:  # more than one round only if more are missing than there are sources to take them
        owed_K = credits_K - counts_K
        if missing > 0:
            order = np.argsort(-owed_K, kind="stable")[:missing]
            counts_K[order] += 1
            missing -= len(order)
        else:  # rounding down could not make up for the sources that are ahead
            drawn = np.flatnonzero(counts_K)
            order = drawn[np.argsort(owed_K[drawn], kind="stable")[:-missing]]
            counts_K[order] -= 1
            missing += len(order)
    return counts_K


def sequence_numbers(positions_N: Int64s, *, num_sequences_N: Int64s, source_N: Int64s, seed: int, window: int = 0) -> Int64s:
    """Sequence drawn at a position of a source's endless stream of epochs, each epoch a permutation.

    Args:
        positions_N: draws made before from the same source, shape (N,).
        num_sequences_N: sequences of that source, shape (N,).
        source_N: its index, part of the key, shape (N,).
        window: with W > 0 an epoch visits windows of W neighbouring sequences one after another, in shuffled order and shuffled
            within, so that reads stay near each other; the incomplete last window comes last. 0 shuffles over all.
    """
    # Epochs, not draws with replacement: after e epochs every sequence was seen e times, none by chance twice as often.
    epoch_N, position_N = np.divmod(positions_N, num_sequences_N)
    keys = derive_keys(seed, _EPOCH_STREAM, source_N, epoch_N)
    if not window:
        return permute(position_N, size=num_sequences_N, key=keys)
    # The short window stays last: among the shuffled ones it would shift all after it, and a position's window could not be computed.
    num_windows_N = num_sequences_N // window
    window_N, offset_N = np.divmod(position_N, window)
    whole_N = window_N < num_windows_N
    shuffled_N = permute(np.where(whole_N, window_N, 0), size=np.maximum(num_windows_N, 1), key=keys)
    window_N = np.where(whole_N, shuffled_N, window_N)
    sizes_N = np.where(whole_N, window, num_sequences_N - num_windows_N * window)
    within = derive_keys(seed, _WINDOW_STREAM, source_N, epoch_N, window_N)
    numbers_N: Int64s = window_N * window + permute(offset_N, size=sizes_N, key=within)
    return numbers_N


class MixtureSampler:
    """Plans global batches whose shares follow weights that may change at every step.

    Attributes:
        step: batches planned so far.
        positions_K: sequences drawn so far from each source; divided by their number it is the epoch.
    """

    def __init__(
        self,
        num_sequences_K: npt.ArrayLike,
        *,
        sources: Sequence[str],
        global_batch: int,
        seed: int,
        fingerprint: str,
        window: int = 0,
    ) -> None:
        """Start at step 0.

        Args:
            num_sequences_K: sequences of each source, shape (K,), positive.
            fingerprint: identity of the data, which saved state is bound to.
        """
        self.num_sequences_K = np.asarray(num_sequences_K, np.int64)
        assert self.num_sequences_K.min() > 0 and len(sources) == len(self.num_sequences_K)
        self._identity: dict[str, Any] = {
            "sources": list(sources),
            "num_sequences": self.num_sequences_K.tolist(),
            "global_batch": global_batch,
            "seed": seed,
            "window": window,
            "fingerprint": fingerprint,
        }
        self._global_batch, self._seed, self._window = global_batch, seed, window
        self.step = 0
        self.positions_K = np.zeros(len(sources), np.int64)
        self._credits_K = np.zeros(len(sources), np.float64)

    def next(self, weights_K: Float64s) -> BatchPlan:
        """Plan the next global batch, in an order that mixes the sources."""
        # Error diffusion: what a source is owed and did not draw it is owed still, so its draws follow the sum of its weights over all
        # steps, whatever way the weights went. Drawing each batch at random would be off by sqrt(draws) instead.
        self._credits_K += self._global_batch * weights_K
        counts_K = apportion(self._credits_K, num_draws=self._global_batch)
        self._credits_K -= counts_K
        source_B = np.repeat(np.arange(len(counts_K)), counts_K)
        first_of_source_B = np.repeat(np.cumsum(counts_K) - counts_K, counts_K)
        position_B = self.positions_K[source_B] + np.arange(self._global_batch) - first_of_source_B
        sequence_B = sequence_numbers(
            position_B,
            num_sequences_N=self.num_sequences_K[source_B],
            source_N=source_B,
            seed=self._seed,
            window=self._window,
        )
        self.positions_K = self.positions_K + counts_K
        # Ranks and micro-batches take runs of the batch: in order of source, some would see one source only.
        key = derive_keys(self._seed, _SHUFFLE_STREAM, self.step)
        order_B = permute(np.arange(self._global_batch), size=self._global_batch, key=key)
        self.step += 1
        return BatchPlan(source_B[order_B], sequence_B[order_B])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: what is needed to go on, and the identity it is bound to."""
        return {
            **self._identity,
            "step": self.step,
            "positions": self.positions_K.tolist(),
            "credits": self._credits_K.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            MismatchError: the state belongs to other data, another seed or another batch size.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                problem = f"{name} was {state.get(name)!r} and is {value!r} now"
                raise MismatchError("sampler state", problem, "resume with the same data and recipe, or start a new search")
        self.step = int(state["step"])
        self.positions_K = np.array(state["positions"], np.int64)
        self._credits_K = np.array(state["credits"], np.float64)
