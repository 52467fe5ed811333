"""The rows of `parts.parquet`: ranges of blocks, kept as columns, for a manifest may have millions of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastmix_data.arrays import Int64s
from fastmix_data.foreign.storage import SHARD

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Part:
    """A range of blocks of one shard, read `repeats` times with the other parts of its pool.

    `num_tokens` and `num_labels` are those of one pass; only the last block of a part can be short, so it has
    `num_labels - (num_blocks - 1) * block_tokens` labels. `pool` is the number of its pool in the manifest, `repeats` the pool's.

    `storage`, `first_token` and `mask_path` are those of the catalog's row: of an import, the shard is a range of a foreign file.
    """

    source: str
    path: str
    sha256: str
    bytes: int
    dtype: str
    has_mask: bool
    shard_blocks: int
    block_start: int
    block_stop: int
    pool: int
    repeats: int
    num_tokens: int
    num_labels: int
    storage: str = SHARD
    first_token: int = 0
    mask_path: str = ""

    @property
    def num_blocks(self) -> int:
        """Blocks of one pass."""
        return self.block_stop - self.block_start

    @property
    def is_whole_shard(self) -> bool:
        """Whether the range is the entire shard."""
        return self.num_blocks == self.shard_blocks


_ARROW_TYPES = {"str": pa.string(), "int": pa.int64(), "bool": pa.bool_()}
PARTS_SCHEMA = pa.schema([pa.field(f.name, _ARROW_TYPES[str(f.type)], nullable=False) for f in fields(Part)])


class Parts(Sequence[Part]):
    """All parts of a manifest, pool by pool. Objects are made of those that are asked for; `numbers` has whole columns."""

    def __init__(self, table: pa.Table) -> None:
        """Keep a table of `PARTS_SCHEMA`."""
        self.table = table.combine_chunks()
        self._numbers: dict[str, Int64s] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Columns that were made from the table stay behind."""
        return Parts, (self.table,)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Part, ...]: ...
    def __getitem__(self, index: int | slice) -> Part | tuple[Part, ...]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            rows = self.table.slice(start, max(stop - start, 0)) if step == 1 else self.table.take(range(start, stop, step))
            return tuple(_parts_of(rows))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return next(_parts_of(self.table.slice(index % len(self), 1)))

    def __iter__(self) -> Iterator[Part]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from _parts_of(self.table.slice(start, _ROWS_AT_ONCE))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parts) and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment]

    def numbers(self, name: str) -> Int64s:
        """A column of numbers, shape (P,)."""
        if name not in self._numbers:
            self._numbers[name] = np.asarray(self.table[name].to_numpy(), np.int64)
        return self._numbers[name]

    def distinct(self, name: str) -> list[Any]:
        """Values that occur in a column."""
        found: list[Any] = pc.unique(self.table[name]).to_pylist()
        return found

    def num_distinct(self, name: str, *, pools: Sequence[int]) -> int:
        """How many values occur in a column of the parts of some pools."""
        chosen = self.table.filter(pa.array(np.isin(self.numbers("pool"), pools)))
        return int(pc.count_distinct(chosen[name]).as_py())


def _parts_of(rows: pa.Table) -> Iterator[Part]:
    columns = [column.to_pylist() for column in rows.columns]
    return (Part(*values) for values in zip(*columns, strict=True))
