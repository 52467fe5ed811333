"""The order in which a manifest's sequences are read: a pure function of the manifest, evaluated at any position.

Phases come one after another, and each is divided into windows. A source's share of every window is its share of the phase
(error-diffused, so after any number of windows each source is within one sequence of it); within a window the sequences are shuffled. A
source's own stream is one keyed permutation per epoch, in its order: no sequence comes again before its epoch is over. Nothing is
stored per sequence; seeking costs a binary search.

How well any N consecutive sequences of a phase hold its mixture: of a source with share s of a phase of K sources, they hold s N sequences
but for fewer than 112 s (1 - s) + 3 + 3 s K, whatever N is. For let W be the number of windows, each of m = n / W <= 56 sequences of the
n of the phase on average. At any window's beginning the number of a source's sequences so far is off its straight line by e_k, and between
two windows' beginnings e_k changes by less than 1 (it is the error of one floor). The number of all sequences is off by the sum of all e,
so between two beginnings a source is off its share of them by |(1 - s) e_k - s (sum of the others)| < (1 - s) + s (K - 1). A run of N
is made of whole windows and of a piece of one window at either end. A window has c < s m + 1 sequences of the source and c' < (1 - s) m +
K - 1 of the others, so a piece of it has at most c (1 - s) too many or s c' too few. Added up, there are fewer than
(1 - s) + s (K - 1) + 2 (56 s + 1) (1 - s) too many and fewer than (1 - s) + s (K - 1) + 2 s (56 (1 - s) + K - 1) too few.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.errors import MismatchError, RecipeError
from fastmix_data.manifest.epoch_draws import epoch_keys
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.permutation import NO_VALUE, derive_keys, name_key, permute, shuffled
from fastmix_data.shards.table_rows import column_of

WINDOW_SEQUENCES = 56
_OFFSET_STREAM, _WINDOW_STREAM = 21, 23


@dataclass(frozen=True)
class Located:
    """Sequences of a manifest, all of shape (N,): source, part, block of the part's shard, sequence within the block, labels it has."""

    source_N: Int64s
    part_N: Int64s
    block_N: Int64s
    within_N: Int64s
    num_labels_N: Int64s


def check_length(manifest: Manifest, sequence_length: int) -> None:
    """Refuse a sequence length that a manifest's blocks cannot be cut into.

    Raises:
        RecipeError: it does not divide block_tokens, or would cut examples that were packed into windows.
    """
    if sequence_length < 1 or manifest.block_tokens % sequence_length:
        problem = f"sequence_length {sequence_length} does not divide its block_tokens {manifest.block_tokens}"
        remedy = f"choose a divisor, for example {np.gcd(sequence_length, manifest.block_tokens)}"
        raise RecipeError(manifest.path, problem, remedy)
    window = manifest.example_tokens
    if window is not None and sequence_length % window:
        problem = f"sequence_length {sequence_length} is no multiple of {window}, the window that its examples are packed into"
        raise RecipeError(manifest.path, problem, f"choose {window} or a multiple of it that divides {manifest.block_tokens}")


class _Pools:
    """The draws of all pools on one line of numbers, by phase, then source, then in their order; and their sequences on another."""

    def __init__(self, manifest: Manifest, *, sequence_length: int) -> None:
        index_of = {source.name: index for index, source in enumerate(manifest.sources)}
        pools, parts, num_sources = manifest.pools, manifest.parts, len(manifest.sources)
        # Rounded up: the last sequence of a part may have few labels, but it has one.
        counts_P = -(-column_of(parts, "num_labels") // sequence_length)
        self.part_end_P: Int64s = np.cumsum(counts_P)
        self.part_start_P: Int64s = self.part_end_P - counts_P
        size_Q = np.zeros(len(pools), np.int64)
        np.add.at(size_Q, column_of(parts, "pool"), counts_P)
        group_Q = np.array([pool.phase * num_sources + index_of[pool.source] for pool in pools], np.int64)
        stop_Q = [
            pool.repeats * size if pool.stop is None else pool.stop for pool, size in zip(pools, size_Q.tolist(), strict=True)
        ]
        # The order of pools is that of the parts; where the catalog names sources in another order than the pools, they are sorted.
        order_Q = np.argsort(group_Q, kind="stable")
        start_Q = np.cumsum(size_Q) - size_Q
        self.size_Q, self.line_start_Q = size_Q[order_Q], start_Q[order_Q]
        self.first_epoch_Q = np.array([pool.first_epoch for pool in pools], np.int64)[order_Q]
        self.skip_Q = np.array([pool.skip for pool in pools], np.int64)[order_Q]
        draws_Q = np.array(stop_Q, np.int64)[order_Q] - self.skip_Q
        self.draw_end_Q: Int64s = np.cumsum(draws_Q)
        self.draw_start_Q: Int64s = self.draw_end_Q - draws_Q
        num_draws = np.zeros(len(manifest.phases) * num_sources, np.int64)
        np.add.at(num_draws, group_Q[order_Q], draws_Q)
        self.num_draws_FK: Int64s = num_draws.reshape(len(manifest.phases), num_sources)
        self.draw_start_FK: Int64s = (np.cumsum(num_draws) - num_draws).reshape(self.num_draws_FK.shape)


class _Phase:
    """Which source each position of a phase is of, and how many of it came before in this phase."""

    def __init__(self, num_draws_K: Int64s, *, number: int, first_window: int, source_keys_K: Int64s, seed: int) -> None:
        self._draws_K, self._seed, self._first_window = num_draws_K, seed, first_window
        self.num_sequences = int(num_draws_K.sum())
        self.num_windows = max(1, -(-self.num_sequences // WINDOW_SEQUENCES))
        # With one offset for all, every source of less than a sequence per window would come up in the same windows, the last ones.
        keys_K = derive_keys(seed, _OFFSET_STREAM, source_keys_K, number)
        offset_K = (keys_K % np.uint64(self.num_windows)).astype(np.int64)
        # Draws of all windows in whole draws a window and the rest: the product of a rest and a number of windows stays within int64.
        self._whole_K, self._rest_K, self._offset_K = num_draws_K // self.num_windows, num_draws_K % self.num_windows, offset_K

    def drawn_VK(self, window: int, num_windows: int) -> Int64s:
        """Sequences of each source before `window` and the windows after it, shape (num_windows, K); all of them at the end."""
        # Floor of a straight line from 0 to all of a source's sequences: error diffusion that can be evaluated anywhere. The
        # offset is less than num_windows, so it adds nothing at either end.
        window_V1 = np.arange(window, window + num_windows)[:, None]
        drawn_VK: Int64s = self._whole_K * window_V1 + (self._rest_K * window_V1 + self._offset_K) // self.num_windows
        return drawn_VK

    def window_of(self, position: int) -> int:
        """The window that a position lies in."""
        # Windows hold 56 sequences give or take K, so the one of a position has to be searched for. `range` stands for the list of all
        # window numbers, and the key for their first positions: no more than log2 of them are ever computed.
        return bisect_right(range(self.num_windows), position, key=lambda window: int(self.drawn_VK(window, 1).sum())) - 1

    def locate(self, positions_N: Int64s) -> tuple[Int64s, Int64s]:
        """Source of each position, and its draw, counted from the beginning of the phase."""
        first, last = self.window_of(int(positions_N[0])), self.window_of(int(positions_N[-1]))
        drawn_VK = self.drawn_VK(first, last - first + 2)
        start_V = drawn_VK.sum(axis=1)
        window_N = np.searchsorted(start_V, positions_N, side="right") - 1
        within_N = positions_N - start_V[window_N]
        # Windows with a position that is asked for, each wholly: the sources of its positions one after another, and then shuffled.
        new_N = np.diff(window_N, prepend=-1) > 0
        touched_U, chosen_N = window_N[new_N], np.cumsum(new_N) - 1
        counts_UK = drawn_VK[touched_U + 1] - drawn_VK[touched_U]
        size_U = counts_UK.sum(axis=1)
        keys_U = derive_keys(self._seed, _WINDOW_STREAM, self._first_window + first + touched_U)
        number_M = np.arange(size_U.max())
        unshuffled_UM = np.full((len(size_U), len(number_M)), NO_VALUE)
        sources_UK = np.broadcast_to(np.arange(counts_UK.shape[1]), counts_UK.shape)
        unshuffled_UM[number_M < size_U[:, None]] = np.repeat(sources_UK.ravel(), counts_UK.ravel())
        source_UM = shuffled(unshuffled_UM, keys_U=keys_U)
        source_N = source_UM[chosen_N, within_N]
        # In a window a source's draws come in their order, so that no sequence comes again before its epoch is over, and what was
        # served before any position is a number of draws of each source.
        earlier_NM = (source_UM[chosen_N] == source_N[:, None]) & (number_M < within_N[:, None])
        return source_N, drawn_VK[window_N, source_N] + np.count_nonzero(earlier_NM, axis=1)


class ManifestOrder:
    """Where each position of the run lies.

    Attributes:
        num_sequences: positions of the run, every repeat counted.
        num_sequences_K: of each source, shape (K,).
        phase_start_F: first position of each phase, and the end of the last, shape (F + 1,).
    """

    def __init__(self, manifest: Manifest, *, sequence_length: int, seed: int | None = None) -> None:
        """Count sequences; opens no shard. Sequences without a single label, which only padding makes, are left out.

        Args:
            sequence_length: divides the manifest's block_tokens.
            seed: of the order; the manifest's when None.

        Raises:
            RecipeError: sequence_length does not divide block_tokens, or would cut examples that were packed into windows.
            MismatchError: the manifest continues another one, whose length or seed were others.
        """
        self._seed = manifest.seed if seed is None else seed
        check_length(manifest, sequence_length)
        _check_goes_on(manifest, sequence_length, seed=self._seed)
        self._length = sequence_length
        self._per_block = manifest.block_tokens // sequence_length
        self._pools = _Pools(manifest, sequence_length=sequence_length)
        self._block_start_P = column_of(manifest.parts, "block_start")
        self._num_labels_P = column_of(manifest.parts, "num_labels")
        self._source_keys_K: Int64s = np.array([name_key(source.name) for source in manifest.sources], np.int64)
        self._phases: list[_Phase] = []
        first_window = 0
        for number, num_draws_K in enumerate(self._pools.num_draws_FK):
            phase = _Phase(
                num_draws_K, number=number, first_window=first_window, source_keys_K=self._source_keys_K, seed=self._seed
            )
            first_window += phase.num_windows
            self._phases.append(phase)
        self.num_sequences_K: Int64s = self._pools.num_draws_FK.sum(axis=0)
        self.num_sequences = int(self.num_sequences_K.sum())
        self.phase_start_F: Int64s = np.cumsum([0, *(phase.num_sequences for phase in self._phases)])

    def locate(self, positions_N: Int64s) -> Located:
        """Find the sequences at ascending positions of the run, 0 <= position < num_sequences.

        Memory is that of the windows of these positions, and of K numbers for each window between the first of them and the last.
        """
        source_N, line_N = np.empty(len(positions_N), np.int64), np.empty(len(positions_N), np.int64)
        bounds_F = np.searchsorted(positions_N, self.phase_start_F)
        for number, phase in enumerate(self._phases):
            here = slice(int(bounds_F[number]), int(bounds_F[number + 1]))
            if here.start < here.stop:
                source_N[here], draw_N = phase.locate(positions_N[here] - self.phase_start_F[number])
                line_N[here] = draw_N + self._pools.draw_start_FK[number, source_N[here]]
        return self._resolve(source_N, line_N)

    def phase_of(self, positions_N: Int64s) -> Int64s:
        """Numbers of the phases that positions of the run lie in."""
        phase_N: Int64s = np.searchsorted(self.phase_start_F, positions_N, side="right") - 1
        return phase_N

    def drawn_before(self, position: int) -> Int64s:
        """Sequences of each source before a position of the run, shape (K,)."""
        number = min(int(np.searchsorted(self.phase_start_F, position, side="right")), len(self._phases)) - 1
        phase, within = self._phases[number], position - int(self.phase_start_F[number])
        drawn_K: Int64s = self._pools.num_draws_FK[:number].sum(axis=0)
        if within >= phase.num_sequences:
            drawn_K += self._pools.num_draws_FK[number]
            return drawn_K
        in_phase_K = phase.drawn_VK(phase.window_of(within), 1)[0]
        drawn_K += in_phase_K
        begun = np.arange(int(in_phase_K.sum()), within)
        if len(begun):
            drawn_K += np.bincount(phase.locate(begun)[0], minlength=len(drawn_K))
        return drawn_K

    def _resolve(self, source_N: Int64s, line_N: Int64s) -> Located:
        # Each pool is a stretch of the line of draws, and in it one epoch follows the other, all of its sequences in another order.
        pools = self._pools
        pool_N = np.searchsorted(pools.draw_end_Q, line_N, side="right")
        size_N = pools.size_Q[pool_N]
        epoch_N, within_N = np.divmod(line_N - pools.draw_start_Q[pool_N] + pools.skip_Q[pool_N], size_N)
        key_N = epoch_keys(self._seed, self._source_keys_K[source_N], pools.first_epoch_Q[pool_N] + epoch_N)
        place_N = pools.line_start_Q[pool_N] + permute(within_N, size=size_N, key=key_N)
        part_N = np.searchsorted(pools.part_end_P, place_N, side="right")
        in_part_N = place_N - pools.part_start_P[part_N]
        return Located(
            source_N,
            part_N,
            self._block_start_P[part_N] + in_part_N // self._per_block,
            in_part_N % self._per_block,
            np.minimum(self._num_labels_P[part_N] - in_part_N * self._length, self._length),
        )


def _check_goes_on(manifest: Manifest, sequence_length: int, *, seed: int) -> None:
    after = manifest.after
    if after is not None and (sequence_length, seed) != (after.sequence_length, manifest.seed):
        changed = (
            f"sequence_length {sequence_length}, but the run that it continues was read in sequences of {after.sequence_length}"
            if sequence_length != after.sequence_length
            else f"seed {seed}, but the order of the run that it continues is of seed {manifest.seed}"
        )
        remedy = (
            f"read it with sequence_length {after.sequence_length} and seed {manifest.seed}, else sequences would be served again"
        )
        raise MismatchError(manifest.path, changed, remedy)
