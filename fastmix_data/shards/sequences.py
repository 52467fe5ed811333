"""Random access to training sequences: from (source, number) to tokens, straight out of the memory maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from fastmix_data.arrays import Bools, Float64s, Int64s, Tokens
from fastmix_data.errors import InputError, MismatchError
from fastmix_data.permutation import derive_keys
from fastmix_data.shards.cached_shard import CachedShard, Fetched, Neighbours
from fastmix_data.shards.catalog import Catalog, ShardRow, Split
from fastmix_data.shards.examples import restarting_positions
from fastmix_data.shards.open_shard import max_open_shards
from fastmix_data.shards.shard_format import SequenceViews

Half = Literal["search", "unseen"]
_PART_STREAM = 31
_COUNTED_AT_ONCE = 64


def half_of(num_sequences: int, *, half: Half | None, shard_number: int) -> tuple[int, int]:
    """First and past-the-last sequence of a shard that belong to a half of the held-out data.

    Held-out documents lie in the order of a hash, so the two halves are random samples; the odd sequence goes to the halves in turn.
    """
    # Of many shards of one sequence each, always rounding down would leave the first half empty.
    middle = (num_sequences + (shard_number + 1) % 2) // 2
    if half is None:
        return 0, num_sequences
    return (0, middle) if half == "search" else (middle, num_sequences)


def spread_numbers(numbers_N: Int64s, *, num_seen_N: Int64s, num_sequences_N: Int64s, source_N: Int64s) -> Int64s:
    """Members of a fixed pseudo-random part of a source, spread evenly over it: one out of each of `num_seen` runs of neighbours.

    The numbers keep their order, so that neighbours in the part are near each other on disk. Nothing but the arguments enters.

    Args:
        numbers_N: which members, 0 <= number < num_seen, shape (N,).
        num_seen_N: sizes of the parts, at most num_sequences_N.

    >>> spread_numbers(np.arange(3), num_seen_N=np.array(3), num_sequences_N=np.array(3), source_N=np.array(0)).tolist()
    [0, 1, 2]
    """
    # Run n begins at floor(n * sequences / seen). Split into whole and rest, the products stay within int64.
    whole_N, rest_N = np.divmod(num_sequences_N, num_seen_N)
    start_N = numbers_N * whole_N + numbers_N * rest_N // num_seen_N
    size_N = whole_N + (numbers_N + 1) * rest_N // num_seen_N - numbers_N * rest_N // num_seen_N
    chosen_N: Int64s = start_N + (derive_keys(_PART_STREAM, source_N, numbers_N) % size_N.astype(np.uint64)).astype(np.int64)
    return chosen_N


class Sequences(NamedTuple):
    """Sequences as they were read.

    Attributes:
        tokens_BS: (B, sequence_length + 1) in the shards' dtype; inputs are `[:, :-1]`, labels `[:, 1:]`.
        carries_loss_BT: (B, sequence_length), False at labels that are padding or masked out.
        positions_BT: (B, sequence_length), from 0 on in each example or document; None where nothing begins within a sequence.
    """

    tokens_BS: Tokens
    carries_loss_BT: Bools
    positions_BT: Int64s | None


class SequenceReader:
    """All sequences of some sources' split, cut from the blocks, or a fixed part of them.

    Attributes:
        num_sequences_K: sequences of each source that can be read, all of which have at least one label, shape (K,).
        has_examples_K: whether sequences of each source hold whole examples, of which only part carries loss, shape (K,).
        mean_loss_tokens_K: labels that carry loss in a sequence of each source, averaged over its split, shape (K,).
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        sources: Sequence[str],
        split: Split,
        sequence_length: int,
        half: Half | None = None,
        share_seen: float | Float64s = 1.0,
        document_attention: bool = False,
        window: int = 1,
    ) -> None:
        """Look up the shards; files are mapped when first read.

        Args:
            share_seen: part of every source's sequences that can be read, in (0, 1], at least one sequence; one number, or one for each
                source. Which ones depends on the source's place among the sources and on their number, not on a seed.
            document_attention: give positions that begin anew after each end-of-text token too, where examples do not tell them.
            window: neighbours of a source that are all going to be read here, and are fetched together where shards lie in a store.

        Raises:
            InputError: a source has no sequence of this length in the split.
            MismatchError: sequences of this length would cut examples that were packed into longer windows.
        """
        assert catalog.info.block_tokens % sequence_length == 0
        self._catalog, self._length = catalog, sequence_length
        self._per_block = catalog.info.block_tokens // sequence_length
        self._rows: list[ShardRow] = []
        firsts: list[int] = []
        counts: list[int] = []
        shard_of_source: list[int] = []
        for source in sources:
            shard_of_source.append(len(self._rows))
            for number, row in enumerate(catalog.shards(source, split)):
                # The last sequence counts if it has a single label; what it lacks carries no loss.
                first, last = half_of(-(-row.num_labels // sequence_length), half=half, shard_number=number)
                if last > first:
                    self._rows.append(row)
                    firsts.append(first)
                    counts.append(last - first)
            if len(self._rows) == shard_of_source[-1]:
                which = f"{half} half of the {split} split" if half else f"{split} split"
                raise InputError(
                    f"source {source}",
                    f"its {which} is smaller than one sequence of {sequence_length} tokens",
                    f"give it more text, or {'raise shards.valid_fraction' if split == 'valid' else 'remove it'}",
                )
        self.has_examples_K: Bools = np.array([catalog.shards(name, split)[0].has_mask for name in sources])
        has_examples = bool(self.has_examples_K.any())
        if has_examples:
            _require_whole_windows(catalog, sequence_length)
        self._document_end = catalog.info.eos_id if document_attention else None
        self._has_positions = has_examples or document_attention
        self._first_S = np.array(firsts, np.int64)
        self._end_S = np.cumsum(counts)  # shards of all sources on one line of sequence numbers
        self._start_S = self._end_S - np.array(counts)
        self._num_labels_S = np.array([row.num_labels for row in self._rows])
        self._start_K = self._start_S[shard_of_source]
        self._num_all_K: Int64s = np.diff(self._start_K, append=self._end_S[-1])
        self.num_sequences_K: Int64s = np.maximum(1, np.rint(self._num_all_K * share_seen)).astype(np.int64)
        self.mean_loss_tokens_K = np.array([_mean_loss_tokens(catalog.shards(name, split), sequence_length) for name in sources])
        # Spread over the source, neighbours in the part lie apart.
        self._window = window if np.array_equal(self.num_sequences_K, self._num_all_K) else 1
        self._opened = lru_cache(maxsize=max_open_shards())(self._open)
        self._dtype = np.result_type(*{row.dtype for row in self._rows})  # an import may be wider than it need be

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence, without the last label."""
        return self._length

    def read(self, source_B: Int64s, sequence_B: Int64s) -> Sequences:
        """Read sequences, each by the index of its source and its number within the source. Many threads may do so."""
        line_B = self._start_K[source_B] + self._within_source(source_B, sequence_B)
        shard_B = np.searchsorted(self._end_S, line_B, side="right")
        block_B, within_B = np.divmod(line_B - self._start_S[shard_B] + self._first_S[shard_B], self._per_block)
        tokens_BS = np.empty((len(source_B), self._length + 1), self._dtype)
        carries_loss_BT = np.ones((len(source_B), self._length), np.bool_)
        begins_BT = np.zeros((len(source_B), self._length), np.bool_) if self._has_positions else None
        places = list(zip(shard_B.tolist(), block_B.tolist(), within_B.tolist(), strict=True))
        opened: Any = self._opened if self._catalog.store is None else Fetched(self._opened, places)
        # one small copy per sequence: measured twice as fast as a gather per shard, which copies everything once more
        for i, (shard, block, within) in enumerate(places):
            tokens, mask, starts = opened(shard)
            tokens_BS[i] = tokens[block, within]
            if mask is not None:
                carries_loss_BT[i] = mask[block, within, 1:]
            if begins_BT is None:
                continue
            if starts is not None:
                begins_BT[i] = starts[block, within, :-1]
            elif self._document_end is not None:
                begins_BT[i, 1:] = tokens_BS[i, :-2] == self._document_end
        labels_B = self._num_labels_S[shard_B] - (block_B * self._per_block + within_B) * self._length
        for short in np.flatnonzero(labels_B < self._length):
            carries_loss_BT[short, labels_B[short] :] = False
        return Sequences(tokens_BS, carries_loss_BT, None if begins_BT is None else restarting_positions(begins_BT))

    def count_loss_tokens(self, source: int, *, at_most: int) -> int:
        """Labels that carry loss in a source's sequences; counting ends at `at_most`, within the first sequences of most sources."""
        num_sequences, found = int(self.num_sequences_K[source]), 0
        for start in range(0, num_sequences, _COUNTED_AT_ONCE):
            numbers_B = np.arange(start, min(start + _COUNTED_AT_ONCE, num_sequences))
            found += int(self.read(np.full(len(numbers_B), source, np.int64), numbers_B).carries_loss_BT.sum())
            if found >= at_most:
                return at_most
        return found

    def _within_source(self, source_B: Int64s, sequence_B: Int64s) -> Int64s:
        """Numbers among all sequences of the source for numbers among those that can be read."""
        if np.array_equal(self.num_sequences_K, self._num_all_K):
            return sequence_B
        return spread_numbers(
            sequence_B,
            num_seen_N=self.num_sequences_K[source_B],
            num_sequences_N=self._num_all_K[source_B],
            source_N=source_B,
        )

    def _open(self, shard: int) -> SequenceViews | CachedShard:
        first, count = int(self._first_S[shard]), int(self._end_S[shard] - self._start_S[shard])
        source = int(np.searchsorted(self._start_K, self._start_S[shard], side="right")) - 1
        in_source = int(self._start_S[shard] - self._start_K[source])
        neighbours = Neighbours(self._window, base=in_source - first, first=first, last=first + count)
        return self._catalog.sequences(self._rows[shard], length=self._length, neighbours=neighbours)


def _require_whole_windows(catalog: Catalog, sequence_length: int) -> None:
    window = catalog.info.example_tokens
    assert window is not None
    if sequence_length % window:
        problem = (
            f"its windows of examples have {window} tokens, and training.sequence_length {sequence_length} is no multiple of that"
        )
        remedy = f"use a multiple of {window}, or run `fastmix preprocess --replace` to pack them anew"
        raise MismatchError(catalog.root, problem, remedy)


def _mean_loss_tokens(rows: Sequence[ShardRow], sequence_length: int) -> float:
    num_sequences = sum(-(-row.num_labels // sequence_length) for row in rows)
    return sum(row.num_loss_tokens for row in rows) / num_sequences
