"""Some of a source's blocks, as ranges of its shards; and the amounts of tokens that can be made of them.

Blocks are regular (exactly `block_tokens` tokens) but for the last of some shards. The amounts that can be realised form one
ascending series: regular blocks one by one, then, when they are used up, the irregular last blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from fastmix_data.arrays import Bools, Int64s
from fastmix_data.permutation import derive_keys
from fastmix_data.shards.catalog import ShardRow
from fastmix_data.shards.table_rows import TableRows, column_of

_SYSTEMATIC_STREAM, _OFFSET_STREAM = 11, 12
_LARGEST_PRODUCT = 1 << 62


class SourceShards:
    """The training shards of a source as columns, in the order of the catalog.

    Attributes:
        rows: of the catalog.
        num_blocks_S, num_tokens_S, num_labels_S: of each shard, shape (S,).
        has_tail_S: whether its last block is irregular, shape (S,).
    """

    def __init__(self, rows: Sequence[ShardRow], *, block_tokens: int) -> None:
        """Tell shards with a short last block from others."""
        self.rows, self.block_tokens = TableRows.of(ShardRow, rows), block_tokens
        self.num_blocks_S: Int64s = column_of(self.rows, "num_blocks")
        self.num_tokens_S: Int64s = column_of(self.rows, "num_tokens")
        self.num_labels_S: Int64s = column_of(self.rows, "num_labels")
        # Any shard that ends a partition may end with a short block; a source of many files has many of them.
        self.has_tail_S: Bools = self.num_tokens_S != self.num_blocks_S * block_tokens

    @cached_property
    def everything(self) -> BlockSet:
        """All blocks of all shards."""
        shard_S = np.arange(len(self.rows))
        return BlockSet(self, shard_S, np.zeros(len(self.rows), np.int64), self.num_blocks_S)

    @cached_property
    def nothing(self) -> BlockSet:
        """No block."""
        none = np.zeros(0, np.int64)
        return BlockSet(self, none, none, none)

    def without(self, *sets: BlockSet) -> BlockSet:
        """All blocks that are in none of some sets, no two of which overlap."""
        shard_S, zeros_S = np.arange(len(self.rows)), np.zeros(len(self.rows), np.int64)
        shard_R = np.concatenate([*(blocks.shard_R for blocks in sets), shard_S])
        # A gap goes from a shard's start or a range's stop to the next range's start or the shard's stop: sorted within each shard, the
        # one list has the beginnings of the gaps and the other, at the same places, their ends.
        start_R = np.concatenate([*(blocks.stop_R for blocks in sets), zeros_S])
        stop_R = np.concatenate([*(blocks.start_R for blocks in sets), self.num_blocks_S])
        by_start, by_stop = np.lexsort((start_R, shard_R)), np.lexsort((stop_R, shard_R))
        shard_R, start_R, stop_R = shard_R[by_start], start_R[by_start], stop_R[by_stop]
        kept = start_R < stop_R
        return BlockSet(self, shard_R[kept], start_R[kept], stop_R[kept])


@dataclass(frozen=True, eq=False)
class BlockSet:
    """Blocks `start` to `stop` of a shard for each of R ranges, no two of which overlap; their order is that of the sequences.

    Attributes:
        shard_R: numbers of shards of the source.
    """

    shards: SourceShards
    shard_R: Int64s
    start_R: Int64s
    stop_R: Int64s

    def same_as(self, other: BlockSet) -> bool:
        """Whether both have the same ranges."""
        pairs = ((self.shard_R, other.shard_R), (self.start_R, other.start_R), (self.stop_R, other.stop_R))
        return all(np.array_equal(mine, theirs) for mine, theirs in pairs)

    @cached_property
    def _at_end_R(self) -> Bools:
        at_end_R: Bools = self.stop_R == self.shards.num_blocks_S[self.shard_R]
        return at_end_R

    @cached_property
    def num_tokens_R(self) -> Int64s:
        """Tokens of each range, shape (R,)."""
        return self._counted(self.shards.num_tokens_S)

    @cached_property
    def num_labels_R(self) -> Int64s:
        """Labels of each range, shape (R,)."""
        return self._counted(self.shards.num_labels_S)

    def _counted(self, of_shard_S: Int64s) -> Int64s:
        # Only a range that ends with its shard can hold a short block; every other holds whole ones.
        size = self.shards.block_tokens
        counted_R: Int64s = np.where(
            self._at_end_R, of_shard_S[self.shard_R] - self.start_R * size, (self.stop_R - self.start_R) * size
        )
        return counted_R

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of one pass."""
        return int(self.num_tokens_R.sum())

    def num_sequences(self, sequence_length: int) -> int:
        """Sequences of one pass. The last one of a range may have few labels, but it has one."""
        return int((-(-self.num_labels_R // sequence_length)).sum())

    @cached_property
    def _has_tail_R(self) -> Bools:
        has_tail_R: Bools = self._at_end_R & self.shards.has_tail_S[self.shard_R]
        return has_tail_R

    @cached_property
    def _num_regular_R(self) -> Int64s:
        num_regular_R: Int64s = self.stop_R - self.start_R - self._has_tail_R
        return num_regular_R

    @cached_property
    def _with_tails(self) -> list[int]:
        """All regular blocks, and then one tail more at a time."""
        # Regular blocks come first, so the amounts up to here are all multiples of a block; the few beyond are listed.
        size = self.shards.block_tokens
        tails_R = self.num_tokens_R - self._num_regular_R * size
        return list(accumulate(tails_R[self._has_tail_R].tolist(), initial=int(self._num_regular_R.sum()) * size))

    def neighbours(self, tokens: int) -> tuple[int, int]:
        """Realisable amounts around `tokens` < num_tokens: the largest not above it, and the next.

        They are at most a block apart, for a tail is shorter than a block: that is what makes the manifest exact to within one.
        """
        if tokens < self._with_tails[0]:
            below = tokens // self.shards.block_tokens * self.shards.block_tokens
            return below, below + self.shards.block_tokens
        # `tokens` is less than all of them, the last of the list, so there is always one after it.
        after = bisect_right(self._with_tails, tokens)
        return self._with_tails[after - 1], self._with_tails[after]

    def choose(self, tokens: int, *, keys: tuple[int, ...]) -> BlockSet:
        """Blocks that make up a realisable amount of at least one block; `keys` decide which."""
        if tokens <= self._with_tails[0]:
            return self._spread(tokens // self.shards.block_tokens, keys=keys)
        # Beyond the regular blocks: all of these, and as many of the tails as it takes, in the order of the shards.
        num_tails = self._with_tails.index(tokens)
        left_out_R = self._has_tail_R & (np.cumsum(self._has_tail_R) > num_tails)
        return self._ranges(self.start_R, self.stop_R - left_out_R)

    def _spread(self, num_blocks: int, *, keys: tuple[int, ...]) -> BlockSet:
        """Regular blocks in proportion to the ranges' sizes, by systematic sampling: within one block of the exact share."""
        # One phase for all ranges: the count of a range is a difference of two floors, so the counts of any run of ranges sum to its
        # exact share to within one block, and all of them to `num_blocks`. Rounding each range alone would let the errors add up.
        regular_R = self._num_regular_R
        total = int(regular_R.sum())
        phase = int(derive_keys(_SYSTEMATIC_STREAM, *keys)[0]) % total
        # Sources of a trillion tokens in small blocks would overflow; Python's integers do not.
        before_R = np.cumsum(regular_R).astype(np.int64 if num_blocks * total < _LARGEST_PRODUCT else object)
        taken_R = ((num_blocks * before_R + phase) // total).astype(np.int64)
        count_R = np.diff(taken_R, prepend=0)
        # A random run of neighbours: always the first would never ship the others.
        offset_R = derive_keys(_OFFSET_STREAM, *keys, np.arange(len(regular_R)))
        start_R = self.start_R + (offset_R % (regular_R - count_R + 1).astype(np.uint64)).astype(np.int64)
        return self._ranges(start_R, start_R + count_R)

    def _ranges(self, start_R: Int64s, stop_R: Int64s) -> BlockSet:
        kept = start_R < stop_R
        return BlockSet(self.shards, self.shard_R[kept], start_R[kept], stop_R[kept])
