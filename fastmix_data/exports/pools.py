"""What of each source a manifest reads, and how often: the terms in which other trainers state a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.shards.table_rows import column_of, distinct

# Shards of formats whose readers fetch a whole file before its first sample, and shuffle by files: the default of their own writers.
FETCHED_FILE_BYTES = 1 << 26


@dataclass(frozen=True)
class Pool:
    """Blocks of one source that are read equally often.

    A source has a pool of all its blocks for its whole epochs, and one of some of them for the rest of its tokens; in several phases it
    can have more.

    Attributes:
        name: the source's, with `.rest` for the rest, and a number where there are several: no source's name has a dot. Files and data
            sets are called so.
        repeats: how often a run reads it.
        parts: in the manifest's order.
        first_part: number of the first of them in the manifest.
        phase: of the run, in which it is read.
    """

    name: str
    source: str
    repeats: int
    parts: tuple[Part, ...]
    first_part: int = 0
    phase: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def num_labels(self) -> int:
        """Labels of one pass."""
        return sum(part.num_labels for part in self.parts)

    @property
    def num_blocks(self) -> int:
        """Blocks of one pass."""
        return sum(part.num_blocks for part in self.parts)

    @property
    def has_mask(self) -> bool:
        """Whether only some of its tokens carry loss."""
        return self.parts[0].has_mask


def pools_of(manifest: Manifest) -> list[Pool]:
    """The pools of a manifest, in the order of its parts. Each has one dtype, and masks for all of its parts or for none.

    Pools of which nothing is drawn are left out. Of several phases, each has pools of its own.
    """
    found, times = list[Pool](), Counter[str]()
    for number, (pool, rows) in enumerate(zip(manifest.pools, manifest.rows_of_pools(), strict=True)):
        if not pool.is_marker:
            kind = pool.source if manifest.has_every_block(number) else f"{pool.source}.rest"
            times[kind] += 1
            name = kind if times[kind] == 1 else f"{kind}.{times[kind]}"
            found.append(Pool(name, pool.source, pool.repeats, tuple(manifest.parts[rows]), rows.start, pool.phase))
    return found


def drawn_rows(manifest: Manifest) -> Int64s:
    """Numbers of the parts of these pools."""
    is_drawn_Q = np.array([not pool.is_marker for pool in manifest.pools], np.bool_)
    drawn_P: Int64s = np.flatnonzero(is_drawn_Q[column_of(manifest.parts, "pool")])
    return drawn_P


def num_padding_labels(manifest: Manifest) -> int:
    """Positions of one pass over these pools that have no next token: the ends of the last blocks of runs."""
    return sum(pool.num_blocks * manifest.block_tokens - pool.num_labels for pool in pools_of(manifest))


def common_dtype(manifest: Manifest) -> np.dtype[np.unsignedinteger]:
    """The smallest that holds the tokens of every part: a batch has samples of several pools."""
    return np.result_type(manifest.dtype, *distinct(manifest.parts, "dtype"))


class PartRange(NamedTuple):
    """Blocks or tokens `start` to `stop` of a part, given by its number in the manifest."""

    part: int
    start: int
    stop: int


def cut_into_files(
    manifest: Manifest, *, unit: Literal["blocks", "tokens"], size: int
) -> Iterator[tuple[Pool, int, tuple[PartRange, ...]]]:
    """Cut every pool into files of `size` units, one part after the other; a pool's last file holds what is left.

    Yields:
        The pool, the file's number in it, and what the file holds, in order.
    """
    for pool in pools_of(manifest):
        lengths = [part.num_blocks if unit == "blocks" else part.num_tokens for part in pool.parts]
        for number, ranges in enumerate(cut_evenly(lengths, size=size)):
            yield pool, number, tuple(each._replace(part=pool.first_part + each.part) for each in ranges)


def cut_evenly(lengths: Sequence[int], *, size: int) -> Iterator[list[PartRange]]:
    """Cut runs that follow each other into pieces of `size`, whatever their borders; the last piece may be smaller.

    >>> for piece in cut_evenly([5, 2, 4], size=4):
    ...     print([tuple(each) for each in piece])
    [(0, 0, 4)]
    [(0, 4, 5), (1, 0, 2), (2, 0, 1)]
    [(2, 1, 4)]
    """
    piece: list[PartRange] = []
    room = size
    for part, length in enumerate(lengths):
        start = 0
        while start < length:
            stop = min(length, start + room)
            piece.append(PartRange(part, start, stop))
            room, start = room - (stop - start), stop
            if not room:
                yield piece
                piece, room = [], size
    if piece:
        yield piece
