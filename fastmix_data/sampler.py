"""Which sequences make up a global batch: deterministic, seekable, and its weights may change at any step.

The plan of the global batch is a pure function of (seed, state, weights). World size, gradient accumulation and loader workers never
enter: a rank takes its slice of the plan. Counts follow the weights by error diffusion; within a source, each epoch is a keyed
permutation evaluated at the positions that are needed.
"""

from __future__ import annotations

import copy
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


def apportion(credits_NK: Float64s, *, num_draws: int) -> Int64s:
    """Whole draws for fractional credits: non-negative, sum `num_draws`, as near to the credits as possible.

    Args:
        credits_NK: owed draws, shape (K,) or (N, K), each row of sum `num_draws`; may be negative where a source is ahead.

    >>> apportion(np.array([1.6, 1.7, -0.3]), num_draws=3)
    array([1, 2, 0])
    """
    # A source that is ahead has negative credit, but cannot give sequences back: it draws none, and the others draw less.
    counts_NK = np.maximum(np.floor(credits_NK), 0).astype(np.int64)
    missing_N = num_draws - counts_NK.sum(axis=-1, keepdims=True)
    while missing_N.any():  # more than one round only if more are missing than there are sources to take them
        owed_NK = credits_NK - counts_NK
        counts_NK += _places(-owed_NK) < missing_N
        if missing_N.min() < 0:  # rounding down could not make up for the sources that are ahead
            drawn_NK = counts_NK > 0
            counts_NK -= drawn_NK & (_places(np.where(drawn_NK, owed_NK, np.inf)) < -missing_N)
        missing_N = num_draws - counts_NK.sum(axis=-1, keepdims=True)
    return counts_NK


def _places(values_NK: Float64s) -> Int64s:
    """Place of each value in its row from the smallest on; of equal ones the first comes first."""
    return np.argsort(np.argsort(values_NK, axis=-1, kind="stable"), axis=-1, kind="stable")


def sequence_numbers(
    positions_N: Int64s, *, num_sequences_N: Int64s, source_N: Int64s, seed: int | Int64s, window: int = 0
) -> Int64s:
    """Sequence drawn at a position of a source's endless stream of epochs, each epoch a permutation.

    Args:
        positions_N: draws made before from the same source, shape (N,).
        num_sequences_N: sequences of that source, shape (N,).
        source_N: its index, part of the key, shape (N,).
        seed: one for all, or of each, shape (N,).
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


class ManySamplers:
    """Plans the global batches of N trainings at once, each by a seed of its own and as if it were alone.

    Attributes:
        step: batches planned so far.
        positions_NK: sequences drawn so far from each source.
        credits_NK: draws that each source is owed still.
    """

    def __init__(self, num_sequences_K: npt.ArrayLike, *, seeds_N: npt.ArrayLike, global_batch: int, window: int = 0) -> None:
        """Start at step 0; arguments as `MixtureSampler` takes them."""
        self.num_sequences_K, self._seeds_N = np.asarray(num_sequences_K, np.int64), np.asarray(seeds_N, np.int64)
        self._global_batch, self._window = global_batch, window
        self.step = 0
        shape = (len(self._seeds_N), len(self.num_sequences_K))
        self.positions_NK, self.credits_NK = np.zeros(shape, np.int64), np.zeros(shape, np.float64)

    def next(self, weights_NK: Float64s) -> BatchPlan:
        """Plan the next global batch of each training, one training after the other: arrays of shape (N * B,)."""
        # Error diffusion: what a source is owed and did not draw it is owed still, so its draws follow the sum of its weights over all
        # steps, whatever way the weights went. Drawing each batch at random would be off by sqrt(draws) instead.
        batch, (num_trainings, num_sources) = self._global_batch, self.credits_NK.shape
        credits_NK = self.credits_NK + batch * weights_NK  # new arrays: copies of a sampler share the old ones
        counts_NK = apportion(credits_NK, num_draws=batch)
        self.credits_NK = credits_NK - counts_NK
        counts = counts_NK.reshape(-1)
        source_M = np.repeat(np.tile(np.arange(num_sources), num_trainings), counts)
        # Drawn sequences lie in runs of one training and source, and count up in each from where its stream of epochs is.
        runs_M = np.repeat(self.positions_NK.reshape(-1) - (np.cumsum(counts) - counts), counts)
        seed_M = np.repeat(self._seeds_N, batch)
        sequence_M = sequence_numbers(
            runs_M + np.arange(len(runs_M)),
            num_sequences_N=self.num_sequences_K[source_M],
            source_N=source_M,
            seed=seed_M,
            window=self._window,
        )
        self.positions_NK = self.positions_NK + counts_NK
        # Ranks and micro-batches take runs of the batch: in order of source, some would see one source only.
        within_M = np.tile(np.arange(batch), num_trainings)
        order_M = permute(within_M, size=batch, key=derive_keys(seed_M, _SHUFFLE_STREAM, self.step))
        order_M += np.repeat(batch * np.arange(num_trainings), batch)
        self.step += 1
        return BatchPlan(source_M[order_M], sequence_M[order_M])


class MixtureSampler:
    """Plans global batches whose shares follow weights that may change at every step."""

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
        self._sampler = ManySamplers(self.num_sequences_K, seeds_N=[seed], global_batch=global_batch, window=window)

    @property
    def step(self) -> int:
        """Batches planned so far."""
        return self._sampler.step

    @property
    def positions_K(self) -> Int64s:
        """Sequences drawn so far from each source; divided by their number it is the epoch."""
        positions_K: Int64s = self._sampler.positions_NK[0]
        return positions_K

    def copy(self) -> MixtureSampler:
        """Another one at the same place, for plans that run ahead of what has been used."""
        other = copy.copy(self)
        other._sampler = copy.copy(self._sampler)
        return other

    def next(self, weights_K: Float64s) -> BatchPlan:
        """Plan the next global batch, in an order that mixes the sources."""
        return self._sampler.next(weights_K[None])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: what is needed to go on, and the identity it is bound to."""
        return {
            **self._identity,
            "step": self.step,
            "positions": self.positions_K.tolist(),
            "credits": self._sampler.credits_NK[0].tolist(),
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
        self._sampler.step = int(state["step"])
        self._sampler.positions_NK = np.array([state["positions"]], np.int64)
        self._sampler.credits_NK = np.array([state["credits"]], np.float64)
