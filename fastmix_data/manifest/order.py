"""The order in which a manifest's sequences are read: a pure function of the manifest, evaluated at any position.

The run is divided into windows. A source's share of every window is its share of the run (error-diffused, so after any number of
windows each source is within one sequence of it); within a window the sequences are shuffled. A source's own stream is one keyed
permutation per epoch, so repeats of a sequence lie in different epochs. Nothing is stored per sequence: seeking costs a binary search.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.errors import RecipeError
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.permutation import derive_keys, permute
from fastmix_data.shards.table_rows import column_of, places_of

# A little below a power of four, the domain of the permutation that shuffles a window: few images then fall outside.
WINDOW_SEQUENCES = 56
_PHASE_STREAM, _EPOCH_STREAM, _WINDOW_STREAM = 21, 22, 23


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
    if manifest.example_tokens is not None and sequence_length % manifest.example_tokens:
        window = manifest.example_tokens
        problem = f"sequence_length {sequence_length} is no multiple of {window}, the window that its examples are packed into"
        raise RecipeError(manifest.path, problem, f"choose {window} or a multiple of it that divides {manifest.block_tokens}")


class _Ranges:
    """Sequences of a list of parts, sources one after another, on one line of numbers."""

    def __init__(self, manifest: Manifest, *, sequence_length: int, partial: bool) -> None:
        parts, names = manifest.parts, [source.name for source in manifest.sources]
        self.parts: Int64s = np.flatnonzero(column_of(parts, "partial") == partial)
        self.block_start_P, self.num_labels_P = (column_of(parts, name)[self.parts] for name in ("block_start", "num_labels"))
        # Rounded up: the last sequence of a part may have few labels, but it has one.
        counts_P = -(-self.num_labels_P // sequence_length)
        self.end_P = np.cumsum(counts_P)
        self.start_P = self.end_P - counts_P
        source_P = places_of(parts, "source", among=names)[self.parts]
        self.size_K, self.repeats_K = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
        np.add.at(self.size_K, source_P, counts_P)
        self.repeats_K[source_P] = column_of(parts, "repeats")[self.parts]
        self.start_K = np.cumsum(self.size_K) - self.size_K


class ManifestOrder:
    """Where each position of the run lies.

    Attributes:
        num_sequences: positions of the run, every repeat counted.
        num_sequences_K: of each source, shape (K,).
    """

    def __init__(self, manifest: Manifest, *, sequence_length: int, seed: int | None = None) -> None:
        """Count sequences; opens no shard. Sequences without a single label, which only padding makes, are left out.

        Args:
            sequence_length: divides the manifest's block_tokens.
            seed: of the order; the manifest's when None.

        Raises:
            RecipeError: sequence_length does not divide block_tokens, or would cut examples that were packed into windows.
        """
        check_length(manifest, sequence_length)
        self._length = sequence_length
        self._per_block = manifest.block_tokens // sequence_length
        self._seed = manifest.seed if seed is None else seed
        self._full = _Ranges(manifest, sequence_length=sequence_length, partial=False)
        self._partial = _Ranges(manifest, sequence_length=sequence_length, partial=True)
        self._epochs_K = self._full.repeats_K
        self._in_full_K = self._epochs_K * self._full.size_K
        self.num_sequences_K: Int64s = self._in_full_K + self._partial.size_K
        self.num_sequences = int(self.num_sequences_K.sum())
        self._num_windows = max(1, -(-self.num_sequences // WINDOW_SEQUENCES))
        num_sources = len(manifest.sources)
        # With one phase for all, every source of less than a sequence per window would come up in the same windows, the last ones.
        keys_K = derive_keys(self._seed, _PHASE_STREAM, np.arange(num_sources))
        self._phase_K: Int64s = (keys_K % np.uint64(self._num_windows)).astype(np.int64)

    def _drawn_VK(self, window: int, num_windows: int) -> Int64s:
        """Sequences of each source before `window` and the windows after it, shape (num_windows, K); all of them at the end."""
        # Floor of a straight line from 0 to all of a source's sequences: error diffusion that can be evaluated anywhere. The
        # phase is less than num_windows, so it adds nothing at either end.
        window_V = np.arange(window, window + num_windows)
        drawn_VK: Int64s = (self.num_sequences_K * window_V[:, None] + self._phase_K) // self._num_windows
        return drawn_VK

    def _window_of(self, position: int) -> int:
        # Windows hold 56 sequences give or take K, so the one of a position has to be searched for. `range` stands for the list of all
        # window numbers, and the key for their first positions: no more than log2 of them are ever computed.
        return bisect_right(range(self._num_windows), position, key=lambda window: int(self._drawn_VK(window, 1).sum())) - 1

    def locate(self, positions_N: Int64s) -> Located:
        """Find the sequences at ascending positions of the run, 0 <= position < num_sequences.

        Memory is that of the positions and of K numbers for each window between the first of them and the last.
        """
        first = last = 0
        if len(positions_N):
            first, last = self._window_of(int(positions_N[0])), self._window_of(int(positions_N[-1]))
        drawn_VK = self._drawn_VK(first, last - first + 2)
        start_V = drawn_VK.sum(axis=1)
        window_N = np.searchsorted(start_V, positions_N, side="right") - 1
        key_N = derive_keys(self._seed, _WINDOW_STREAM, first + window_N)
        # A position's slot: its place in the window before the window is shuffled, where the sources lie one after another.
        slot_N = start_V[window_N] + permute(positions_N - start_V[window_N], size=np.diff(start_V)[window_N], key=key_N)
        # Runs of (window, source), one after another, cover the line of slots. A slot's run tells its source, and its place in the run
        # how many of that source were drawn before it in this window; with those of the windows before, that is its draw number.
        counts_VK = np.diff(drawn_VK, axis=0)
        end_R = start_V[0] + np.cumsum(counts_VK.ravel())
        run_N = np.searchsorted(end_R, slot_N, side="right")
        draw_N = drawn_VK[:-1].ravel()[run_N] + slot_N - (end_R - counts_VK.ravel())[run_N]
        return self._resolve(run_N % len(self.num_sequences_K), draw_N)

    def _resolve(self, source_N: Int64s, draw_N: Int64s) -> Located:
        # A source's draws: its full epochs, each all of its sequences in another order, and after them the part of one.
        partial_N = draw_N >= self._in_full_K[source_N]
        size_N = np.where(partial_N, self._partial.size_K[source_N], self._full.size_K[source_N])
        # Below, both branches of `where` are evaluated: a source without a full epoch has size 0 there, which must not divide.
        within_N = np.where(partial_N, draw_N - self._in_full_K[source_N], draw_N % np.maximum(size_N, 1))
        epoch_N = np.where(partial_N, self._epochs_K[source_N], draw_N // np.maximum(size_N, 1))
        sequence_N = permute(within_N, size=size_N, key=derive_keys(self._seed, _EPOCH_STREAM, source_N, epoch_N))
        part_N, block_N, in_block_N, labels_N = (np.empty(len(source_N), np.int64) for _ in range(4))
        for ranges, chosen_N in ((self._full, ~partial_N), (self._partial, partial_N)):
            line = ranges.start_K[source_N[chosen_N]] + sequence_N[chosen_N]
            row = np.searchsorted(ranges.end_P, line, side="right")
            in_part = line - ranges.start_P[row]
            part_N[chosen_N] = ranges.parts[row]
            block_N[chosen_N] = ranges.block_start_P[row] + in_part // self._per_block
            in_block_N[chosen_N] = in_part % self._per_block
            labels_N[chosen_N] = np.minimum(ranges.num_labels_P[row] - in_part * self._length, self._length)
        return Located(source_N, part_N, block_N, in_block_N, labels_N)
