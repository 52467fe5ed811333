"""Which documents the tokens of a block come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.errors import CorruptArtefactError
from fastmix_data.foreign.storage import BORROWED, SHARD
from fastmix_data.messages import first_line
from fastmix_data.shards.catalog import Catalog, ShardRow, load_catalog
from fastmix_data.shards.foreign_documents import Document, ForeignDocuments
from fastmix_data.workdir import Workdir, workdir_above

_SHOWN = ("file", "locator", "num_tokens", "num_prompt_tokens", "text_hash")


def documents_of_block(catalog: Catalog, row: ShardRow, *, block: int) -> list[Document] | None:
    """Documents with a token in a block, in their order there; None if nothing says which they are.

    Each has `file`, `locator`, `num_tokens`, `num_prompt_tokens`, `text_hash`, the `first` and `last` token of the block that is its
    own, and whether it `begins_before` the block. Of documents in foreign files, counts and hash are None. Their locator is the number
    from 0 that the file's format gives them, or their first token in the file where it does not tell documents apart.

    Raises:
        CorruptArtefactError, InputError: a table, or what says where a foreign file's documents begin, cannot be read.
    """
    return documents_of_blocks(catalog, [(row, block)])[0]


def documents_of_blocks(catalog: Catalog, blocks: Sequence[tuple[ShardRow, int]]) -> list[list[Document] | None]:
    """The same for many blocks, given as shard and number; tables are read once for all of them."""
    of_split: dict[tuple[str, str], list[int]] = {}
    borrowed: dict[Path, list[int]] = {}
    found: list[list[Document] | None] = [None] * len(blocks)
    foreign = ForeignDocuments(catalog)
    for number, (row, block) in enumerate(blocks):
        if row.storage == SHARD:
            of_split.setdefault((row.source, row.split), []).append(number)
        elif row.storage != BORROWED:
            found[number] = foreign.of_block(row, block)
        elif (workdir := workdir_above(catalog.root / row.path)) is not None:
            borrowed.setdefault(workdir.catalog, []).append(number)
    for (source, split), numbers in of_split.items():
        # A partition is of one source, whose name its table starts with; of 100,000 tables some hundred are left to look into.
        tables = sorted(Workdir(catalog.root).documents.glob(f"{source}-*.parquet"))
        if tables:
            line = _DocumentLine(catalog, catalog.by_split[source, split], tables)
            for n, of_block in zip(numbers, line.of_blocks([blocks[n] for n in numbers]), strict=True):
                found[n] = of_block
    for path, numbers in borrowed.items():
        lender = load_catalog(path)
        rows = {row.path: row for row in lender.rows}
        theirs = {n: rows.get((catalog.root / blocks[n][0].path).resolve().relative_to(lender.root).as_posix()) for n in numbers}
        # What its tables say of a shard that was made anew is not about this one.
        same = [(n, row) for n, row in theirs.items() if row is not None and row.sha256 == blocks[n][0].sha256]
        for (n, _), documents in zip(same, documents_of_blocks(lender, [(row, blocks[n][1]) for n, row in same]), strict=True):
            found[n] = documents
    return found


class _DocumentLine:
    """Shards of a source's split, end to end: one line of tokens on which documents lie, without gaps unless there is padding."""

    def __init__(self, catalog: Catalog, shards: Sequence[ShardRow], tables: list[Path]) -> None:
        self._block_tokens, self._shards, self._tables = catalog.info.block_tokens, shards, tables
        self._number_of = {row.path: number for number, row in enumerate(shards)}
        self._start_S = np.concatenate([[0], np.cumsum([row.num_tokens for row in shards])])
        self._starting: dict[int, list[Document]] = {}

    def of_blocks(self, blocks: Sequence[tuple[ShardRow, int]]) -> list[list[Document]]:
        places = [(self._number_of[row.path], block) for row, block in blocks]
        missing = {number for number, _ in places}
        # The first document of a block may have begun any number of shards before.
        while missing:
            self._read(missing)
            missing = {shard for place in places if (shard := self._earliest(*place)) not in self._starting}
        return [self._of_block(*place) for place in places]

    def _extent(self, number: int, block: int) -> tuple[int, int]:
        begin = int(self._start_S[number]) + block * self._block_tokens
        # A short block ends before its stride does; what follows is the next shard's.
        return begin, min(begin + self._block_tokens, int(self._start_S[number + 1]))

    def _earliest(self, number: int, block: int) -> int:
        """The last shard in which a document starts that reaches the block's beginning, or the next one to look into."""
        begin, _ = self._extent(number, block)
        shard = number
        while shard > 0 and shard in self._starting:
            if self._starting[shard] and self._starting[shard][0]["start"] <= begin:
                break
            shard -= 1
        return shard

    def _of_block(self, number: int, block: int) -> list[Document]:
        begin, end = self._extent(number, block)
        starting = [document for shard in range(self._earliest(number, block), number + 1) for document in self._starting[shard]]
        return [
            {
                **{name: document[name] for name in _SHOWN},
                "first": max(document["start"] - begin, 0),
                "last": min(document["start"] + document["num_tokens"], end) - begin - 1,
                "begins_before": document["start"] < begin,
            }
            for document in starting
            if document["start"] < end and document["start"] + document["num_tokens"] > begin
        ]

    def _read(self, numbers: set[int]) -> None:
        paths = [self._shards[number].path for number in numbers]
        try:
            table = pq.read_table(self._tables, columns=[*_SHOWN, "shard", "block", "offset"], filters=[("shard", "in", paths)])
        except (pa.ArrowInvalid, OSError) as error:
            problem = f"cannot be read ({first_line(error)})"
            raise CorruptArtefactError(self._tables[0].parent, problem, "run `fastmix preprocess --replace`") from error
        self._starting |= {number: [] for number in numbers}
        for document in table.to_pylist():
            number = self._number_of[document["shard"]]
            start = int(self._start_S[number]) + document["block"] * self._block_tokens + document["offset"]
            self._starting[number].append({**document, "start": start})
        for number in numbers:
            self._starting[number].sort(key=lambda document: int(document["start"]))
