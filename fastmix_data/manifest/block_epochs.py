"""A source's tokens in units that can be shipped: whole passes over its shards, and ranges of blocks for the rest.

Blocks are regular (exactly `block_tokens` tokens) but for the last of some shards. The amounts that can be realised form one
ascending series per pass: regular blocks one by one, then, when they are used up, the irregular last blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from fastmix_data.permutation import derive_keys
from fastmix_data.shards.catalog import ShardRow
from fastmix_data.shards.table_rows import column_of

_PHASE_STREAM, _OFFSET_STREAM = 11, 12


class BlockRange(NamedTuple):
    """Blocks `start` to `stop` of a shard, read `repeats` times; `partial` if they belong to an incomplete pass."""

    row: ShardRow
    start: int
    stop: int
    repeats: int
    partial: bool


class SourceBlocks:
    """The training blocks of one source.

    Attributes:
        num_tokens: unique tokens.
    """

    def __init__(self, rows: Sequence[ShardRow], *, block_tokens: int, index: int) -> None:
        """Sort blocks into regular and irregular ones.

        Args:
            index: of the source, which tells its random offsets from those of others.
        """
        self._rows, self._block_tokens, self._index = rows, block_tokens, index
        num_tokens_S, num_blocks_S = (column_of(rows, name).tolist() for name in ("num_tokens", "num_blocks"))
        self.num_tokens: int = sum(num_tokens_S)
        # Any shard that ends a partition may end with a short block; a source of many files has many of them.
        tails: list[int] = [
            tokens - (blocks - 1) * block_tokens for tokens, blocks in zip(num_tokens_S, num_blocks_S, strict=True)
        ]
        self._regular = [blocks - (tail != block_tokens) for blocks, tail in zip(num_blocks_S, tails, strict=True)]
        self._irregular = [shard for shard, tail in enumerate(tails) if tail != block_tokens]
        self._num_regular = sum(self._regular)
        # A pass takes regular blocks first, so the amounts up to here are all multiples of a block; the few beyond are listed.
        start = self._num_regular * block_tokens
        self._with_tails = list(accumulate((tails[shard] for shard in self._irregular), initial=start))

    def floor(self, tokens: int) -> int:
        """Largest realisable amount that is at most `tokens`."""
        if not self.num_tokens:
            return 0
        epochs, rest = divmod(tokens, self.num_tokens)
        return epochs * self.num_tokens + self._neighbours(rest)[0]

    def nearest(self, tokens: int, *, cap: int) -> int:
        """Realisable amount nearest to `tokens` that is at most `cap`, which must be realisable; off by half a block at most."""
        # The tokens asked for carry the error of the sources before, so they can be below nothing or beyond the cap.
        if tokens <= 0 or tokens >= cap:
            return cap if tokens > 0 else 0
        epochs, rest = divmod(tokens, self.num_tokens)
        below, above = self._neighbours(rest)
        nearer = above if above - rest < rest - below else below
        return epochs * self.num_tokens + nearer

    def _neighbours(self, rest: int) -> tuple[int, int]:
        """Realisable amounts of one pass around `rest` < num_tokens: the largest not above it, and the next.

        They are at most a block apart, for a tail is shorter than a block: that is what makes the manifest exact to within one.
        """
        if rest < self._with_tails[0]:
            below = rest // self._block_tokens * self._block_tokens
            return below, below + self._block_tokens
        # `rest` is less than a whole pass, the last of the list, so there is always one after it.
        after = bisect_right(self._with_tails, rest)
        return self._with_tails[after - 1], self._with_tails[after]

    def ranges(self, tokens: int, *, seed: int) -> Iterator[BlockRange]:
        """Cut a realisable amount into ranges of blocks: full passes first, then the partial one."""
        if not tokens:
            return
        epochs, rest = divmod(tokens, self.num_tokens)
        if epochs:
            for row in self._rows:
                yield BlockRange(row, 0, row.num_blocks, epochs, False)
        if rest <= self._with_tails[0]:
            yield from self._spread(rest // self._block_tokens, seed=seed)
            return
        # Beyond the regular blocks: all of these, and as many of the tails as it takes, in the order of the shards.
        with_tail = set(self._irregular[: self._with_tails.index(rest)])
        for shard, row in enumerate(self._rows):
            stop = row.num_blocks if shard in with_tail else self._regular[shard]
            if stop:
                yield BlockRange(row, 0, stop, 1, True)

    def _spread(self, num_blocks: int, *, seed: int) -> Iterator[BlockRange]:
        """Regular blocks in proportion to the shards' sizes, by systematic sampling: within one block of the exact share."""
        if not num_blocks:
            return
        # One phase for all shards: the count of a shard is a difference of two floors, so the counts of any run of shards sum to its
        # exact share to within one block, and all of them to `num_blocks`. Rounding each shard alone would let the errors add up.
        phase = int(derive_keys(seed, _PHASE_STREAM, self._index)[0]) % self._num_regular
        offset_keys = derive_keys(seed, _OFFSET_STREAM, self._index, np.arange(len(self._rows))).tolist()
        before = taken_before = 0
        for row, regular, offset_key in zip(self._rows, self._regular, offset_keys, strict=True):
            before += regular
            taken = (num_blocks * before + phase) // self._num_regular
            count, taken_before = taken - taken_before, taken
            if count:
                start = offset_key % (
                    regular - count + 1
                )  # a random run of neighbours: always the first would never ship the others
                yield BlockRange(row, start, start + count, 1, True)
