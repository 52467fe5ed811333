"""Which documents of a foreign file a range of its tokens comes from, as the files of its own format say, or else its ends of texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.foreign.document_starts import documents_beside
from fastmix_data.foreign.foreign_file import DocumentStarts
from fastmix_data.foreign.mds import MdsTokens, is_mds
from fastmix_data.foreign.storage import TAIL, is_foreign
from fastmix_data.shards.catalog import Catalog, ShardRow
from fastmix_data.shards.table_rows import distinct, places_of

_LOOKED_AT_ONCE = 1 << 20
_NOT_COUNTED = {"num_tokens": None, "num_prompt_tokens": None, "text_hash": None}
Document = dict[str, Any]


class ForeignDocuments:
    """Documents of blocks that are ranges of foreign files, or hold the ends of some."""

    def __init__(self, catalog: Catalog) -> None:
        """Look into files when they are asked for."""
        self._catalog = catalog
        self._beside: dict[str, DocumentStarts | None] = {}
        self._tails: dict[str, dict[str, list[_Rest]]] = {}

    def of_block(self, row: ShardRow, block: int) -> list[Document] | None:
        """As `documents_of_block`; None of a shard of ends if the catalog does not tell of which files, because some have no block."""
        begin = block * self._catalog.info.block_tokens
        count = min(self._catalog.info.block_tokens, row.num_tokens - begin)
        if is_foreign(row.storage):
            return self._of_range(row, row.first_token + begin, count, at=0)
        if row.source not in self._tails:
            self._tails[row.source] = _tails_of(self._catalog, row.source)
        if row.path not in self._tails[row.source]:
            return None
        found: list[Document] = []
        for rest in self._tails[row.source][row.path]:
            start, stop = max(begin, rest.place), min(begin + count, rest.place + rest.num_tokens)
            if start < stop:
                found += self._of_range(rest.row, rest.first + start - rest.place, stop - start, at=start - begin)
        return found

    def _of_range(self, row: ShardRow, first: int, count: int, *, at: int) -> list[Document]:
        """Documents of `count` tokens of a file, which stand at `at` in their block."""
        path = Path(os.path.normpath(self._catalog.root / row.path))
        if row.path not in self._beside:
            self._beside[row.path] = documents_beside(path, row.storage)
        beside = self._beside[row.path]
        if beside is None:
            starts = [(start, f"token {start}") for start in self._by_ends(path, row, first, count)]
        else:
            kind = "sample" if is_mds(row.storage) else "document"
            number = beside.before(first + 1) - 1
            numbered = beside.starts(max(0, number), beside.before(first + count)).tolist()
            starts = [(start, f"{kind} {max(0, number) + later}") for later, start in enumerate(numbered)]
            if number < 0:
                starts = [(0, f"before {kind} 0"), *starts]
        return [
            {
                "file": str(path),
                "locator": locator,
                **_NOT_COUNTED,
                "first": at + max(start, first) - first,
                "last": at + min(end, first + count) - first - 1,
                "begins_before": start < first,
            }
            for (start, locator), (end, _) in pairwise([*starts, (first + count, "")])
            if start < end
        ]

    def _by_ends(self, path: Path, row: ShardRow, first: int, count: int) -> Iterator[int]:
        """First tokens of documents that end with an end of text."""
        dtype, eos_id = np.dtype(row.dtype), self._catalog.info.eos_id

        def ends(start: int, stop: int) -> list[int]:
            tokens_T = np.fromfile(path, dtype, stop - start, offset=start * dtype.itemsize)
            return (start + 1 + np.flatnonzero(tokens_T == eos_id)).tolist()

        before, stop = list[int](), first
        while stop and not before:
            start = max(0, stop - _LOOKED_AT_ONCE)
            before, stop = ends(start, stop), start
        yield before[-1] if before else 0
        yield from ends(first, first + count - 1)


@dataclass(frozen=True)
class _Rest:
    """What of a file fills no block: its tokens from `first` on, which are in a shard of ends at `place`."""

    row: ShardRow
    first: int
    num_tokens: int
    place: int


def _tails_of(catalog: Catalog, source: str) -> dict[str, list[_Rest]]:
    """Rests by the path of each shard of ends, if it is certain which they are."""
    # Rows of a source are in the order of its files, and after those of a partition come the shards of their ends.
    found: dict[str, list[_Rest]] = {}
    files: dict[str, ShardRow] = {}
    tails: list[ShardRow] = []
    sources = distinct(catalog.rows, "source")
    rows = catalog.rows.part(np.flatnonzero(places_of(catalog.rows, "source", among=sources) == sources.index(source)))
    for row, following in pairwise([*rows, None]):
        assert row is not None
        if row.storage != TAIL:
            files.setdefault(row.path, row)
            continue
        tails.append(row)
        if following is None or following.storage != TAIL:
            found |= _placed(catalog, list(files.values()), tails)
            files, tails = {}, []
    return found


def _placed(catalog: Catalog, files: Sequence[ShardRow], tails: Sequence[ShardRow]) -> dict[str, list[_Rest]]:
    """Rests of files in a row, shard by shard; none if they are not all that is there, for a file without a block has no row."""
    block_tokens = catalog.info.block_tokens
    sizes = [
        MdsTokens(catalog.root / row.path, row.storage).num_tokens
        if is_mds(row.storage)
        else row.bytes // np.dtype(row.dtype).itemsize
        for row in files
    ]
    firsts = [(size - 1) // block_tokens * block_tokens for size in sizes]
    end_F = np.cumsum([size - first for size, first in zip(sizes, firsts, strict=True)])
    tail_end_S = np.cumsum([tail.num_tokens for tail in tails])
    if not files or end_F[-1] != tail_end_S[-1]:
        return {}
    found: dict[str, list[_Rest]] = {}
    for tail, tail_end in zip(tails, tail_end_S.tolist(), strict=True):
        begin = tail_end - tail.num_tokens
        first, last = np.searchsorted(end_F, [begin, tail_end - 1], side="right").tolist()
        found[tail.path] = [
            _Rest(files[n], firsts[n], sizes[n] - firsts[n], int(end_F[n]) - (sizes[n] - firsts[n]) - begin)
            for n in range(first, last + 1)
        ]
    return found
