"""One epoch over a set of blocks, drawn sequence by sequence in the order of a keyed permutation: how many tokens the first draws have."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from fastmix_data.arrays import Int64s, UInt64s
from fastmix_data.manifest.block_set import BlockSet
from fastmix_data.permutation import derive_keys, positions_of

_EPOCH_STREAM = 22


def epoch_keys(seed: int, source_key_N: int | Int64s, epoch_N: int | Int64s) -> UInt64s:
    """Keys of the permutations of epochs. Sources enter by their names' keys, so that others beside them change nothing."""
    return derive_keys(seed, _EPOCH_STREAM, source_key_N, epoch_N)


class EpochDraws:
    """Tokens of the first draws of an epoch.

    Attributes:
        num_sequences: draws of the whole epoch.
    """

    def __init__(self, blocks: BlockSet, *, sequence_length: int, key: UInt64s) -> None:
        """Find when the few sequences come that are not full: the last ones of some ranges.

        Args:
            key: from `epoch_keys`.
        """
        self._length, self._num_tokens = sequence_length, blocks.num_tokens
        # Rounded up: the last sequence of a range may have few labels, but it has one.
        counts_R = -(-blocks.num_labels_R // sequence_length)
        self.num_sequences = int(counts_R.sum())
        # The last token of a partition has no label. Where it would be a sequence of its own, it counts with the one before it, which
        # then lacks minus one token; where there is none before it, with the last draw.
        missing_R = counts_R * sequence_length - blocks.num_tokens_R
        short_R = np.flatnonzero((counts_R > 0) & (missing_R != 0))
        draw_R = positions_of(np.cumsum(counts_R)[short_R] - 1, size=self.num_sequences, key=key) if len(short_R) else short_R
        order = np.argsort(draw_R)
        self._draw_R = draw_R[order]
        self._missing_R = np.concatenate([[0], np.cumsum(missing_R[short_R][order])])

    def num_tokens(self, draws: int) -> int:
        """Tokens of the first draws."""
        if draws >= self.num_sequences:
            return self._num_tokens
        return draws * self._length - int(self._missing_R[np.searchsorted(self._draw_R, draws)])

    def num_draws(self, tokens: int) -> int:
        """Most draws that have no more than these tokens."""
        return bisect_right(range(self.num_sequences + 1), tokens, key=self.num_tokens) - 1
