"""MosaicML's MDS: samples one after another in a file, with a table of where each begins; `index.json` says what a sample is made of.

Tokens of a sample lie in one run, and those of the next after other bytes: all samples, end to end, are a line of tokens that is
gathered where it is read. A sample is the sizes of its columns that have none of their own (uint32 each), then the columns in order. An
array without a shape of its own begins with a byte and its length.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import Int64s, Tokens
from fastmix_data.atomic_files import read_json
from fastmix_data.errors import CorruptArtefactError, InputError
from fastmix_data.foreign.storage import MDS_PREFIX

INDEX = "index.json"
_USUAL_COLUMNS = ("tokens", "input_ids")
_REMEDY = "write it again with MDSWriter, as `ndarray:uint16` or `ndarray:uint32`, without compression"
_LENGTH_OF_ARRAY = ((1 << 8, 1), (1 << 16, 2), (1 << 32, 4))  # below so many elements, the length takes so many bytes


def is_mds(storage: str) -> bool:
    """Whether tokens lie in MDS."""
    return storage.startswith(MDS_PREFIX)


@dataclass(frozen=True)
class MdsFolder:
    """What `index.json` says.

    Attributes:
        files: of samples, in their order, with the samples of each.
        storage: of them all.
    """

    files: tuple[tuple[Path, int], ...]
    storage: str


def mds_folder(folder: Path, *, name: str, where: str, column: str | None, dtype: str | None) -> MdsFolder:
    """Look at a folder that `MDSWriter` has left.

    Raises:
        InputError: it is none, it is compressed, or no column of it holds tokens.
    """
    index = folder / INDEX
    if not index.is_file():
        raise InputError(where, f"{name} has no {INDEX}, so it is no folder of MDS", "give the folder that MDSWriter wrote")
    content = read_json(index)
    shards = content.get("shards") if isinstance(content, dict) else None
    if not shards or any(shard.get("format") != "mds" or shard.get("version") != 2 for shard in shards):
        raise InputError(where, f"{name}/{INDEX} lists no shards of MDS, version 2", _REMEDY)
    columns = dict(zip(shards[0]["column_names"], shards[0]["column_encodings"], strict=True))
    chosen = _token_column(columns, column, name=name, where=where)
    kind = _dtype_of_column(columns[chosen], dtype, column=chosen, name=name, where=where)
    files = []
    for shard in shards:
        path = folder / shard["raw_data"]["basename"]
        if not path.is_file():
            packed = shard.get("zip_data")
            problem = f"{path.name} of {name} is not there" + (f", only its {shard['compression']} form" if packed else "")
            remedy = f"decompress it beside itself, or {_REMEDY}" if packed else "put it back"
            raise InputError(where, problem, remedy)
        if (size := path.stat().st_size) != shard["raw_data"]["bytes"]:
            problem = f"{path.name} of {name} has {size} bytes, and {INDEX} says {shard['raw_data']['bytes']}"
            raise InputError(where, problem, "put back the file that belongs to it")
        files.append((path, int(shard["samples"])))
    return MdsFolder(tuple(files), f"{MDS_PREFIX}{chosen}:{kind}")


def _token_column(columns: Mapping[str, str], asked: str | None, *, name: str, where: str) -> str:
    arrays = [column for column, encoding in columns.items() if encoding.split(":")[0] in ("ndarray", "bytes")]
    usual = [column for column in _USUAL_COLUMNS if column in arrays]
    found = [asked] if asked is not None else usual or arrays
    if len(found) != 1 or found[0] not in arrays:
        listed = ", ".join(f"{column} ({encoding})" for column, encoding in columns.items())
        problem = f"{name} has no one column of tokens" if asked is None else f"{name} has no column {asked!r} of tokens"
        raise InputError(where, f"{problem}; its columns are {listed}", "name it with column")
    return found[0]


def _dtype_of_column(encoding: str, asked: str | None, *, column: str, name: str, where: str) -> str:
    kind, *parts = encoding.split(":")
    stated = parts[0] if kind == "ndarray" and parts else None
    if stated is None and asked is None:
        problem = f"column {column} of {name} is {encoding}, which does not say the type of a token"
        raise InputError(where, problem, "give dtype")
    if asked is not None and stated not in (None, asked):
        raise InputError(where, f"dtype is {asked}, and column {column} of {name} is {encoding}", "leave dtype out")
    found = stated or asked or ""
    if (kind == "ndarray" and stated is None) or not found.removeprefix("u").startswith("int"):
        raise InputError(where, f"column {column} of {name} is {encoding}", _REMEDY)
    return found


class MdsTokens:
    """The tokens of all samples of one file, end to end.

    Attributes:
        num_tokens: of them all.
    """

    def __init__(self, path: Path, storage: str) -> None:
        """Map the file and read its table.

        Raises:
            CorruptArtefactError: it is missing, or its table does not fit.
        """
        self.path = path
        _, column, dtype = storage.split(":")
        self._dtype = np.dtype(dtype).newbyteorder("<")
        remedy = "put the file back as it was, or run `fastmix preprocess --replace`"
        try:
            shards = read_json(path.with_name(INDEX))["shards"]
            shard: dict[str, Any] = next(found for found in shards if found["raw_data"]["basename"] == path.name)
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError, KeyError, StopIteration) as error:
            raise CorruptArtefactError(path, f"is no file of MDS that an {INDEX} beside it lists", remedy) from error
        num_samples = int(shard["samples"])
        table = np.frombuffer(self._map, "<u4", num_samples + 2).astype(np.int64)
        if table[0] != num_samples or table[-1] != len(self._map) or (np.diff(table[1:]) < 0).any():
            raise CorruptArtefactError(path, "its table of samples does not fit it", remedy)
        starts_S, sizes_S = self._column(shard, column, starts_S=table[1:-1], sizes_S=np.diff(table[1:]))
        self._byte_S, counts_S = self._without_length(shard, column, starts_S, sizes_S)
        if (counts_S < 0).any():
            raise CorruptArtefactError(path, f"its column {column} is not an array of one axis", remedy)
        self._end_S: Int64s = np.cumsum(counts_S)
        self.num_tokens = int(self._end_S[-1])

    def _column(self, shard: Mapping[str, Any], column: str, *, starts_S: Int64s, sizes_S: Int64s) -> tuple[Int64s, Int64s]:
        """Where a column lies in each sample, in bytes of the file, and how many they are."""
        names, sizes = shard["column_names"], shard["column_sizes"]
        place, varying = names.index(column), [size is None for size in sizes]
        head = 4 * sum(varying)
        if sizes[place] is not None and not any(varying[:place]):
            before = sum(sizes[:place])
            return starts_S + head + before, np.full(len(starts_S), sizes[place], np.int64)
        if sum(varying) == 1:
            # The one that varies is what the others leave of the sample: no sample has to be looked into.
            found = sizes_S - head - sum(size for size in sizes if size is not None)
            return starts_S + head + sum(sizes[:place]), found
        content = np.frombuffer(self._map, np.uint8)
        begin_S, column_S, number = starts_S + head, np.zeros_like(starts_S), 0
        for size in sizes[: place + 1]:
            begin_S = begin_S + column_S
            if size is None:
                at = (starts_S + 4 * number)[:, None] + np.arange(4)
                column_S = content[at].copy().view("<u4")[:, 0].astype(np.int64)
                number += 1
            else:
                column_S = np.full(len(starts_S), size, np.int64)
        return begin_S, column_S

    def _without_length(self, shard: Mapping[str, Any], column: str, starts_S: Int64s, sizes_S: Int64s) -> tuple[Int64s, Int64s]:
        """Where tokens begin, and how many they are; -1 of them where the column is no array of one axis."""
        encoding = shard["column_encodings"][shard["column_names"].index(column)]
        itemsize = self._dtype.itemsize
        if not encoding.startswith("ndarray") or encoding.count(":") == 2:
            return starts_S, np.where(sizes_S % itemsize, -1, sizes_S // itemsize)
        # A byte with the axes and the width of the length, and the length: as wide as it has to be, so the column's size tells.
        counts_S, first_S = np.full(len(sizes_S), -1, np.int64), starts_S.copy()
        least = 0
        for below, width in _LENGTH_OF_ARRAY:
            count_S, rest_S = np.divmod(sizes_S - 1 - width, itemsize)
            fits_S = (rest_S == 0) & (count_S >= least) & (count_S < below)
            counts_S[fits_S], first_S[fits_S] = count_S[fits_S], starts_S[fits_S] + 1 + width
            least = below
        return first_S, counts_S

    def read(self, first: int, count: int) -> Tokens:
        """Tokens from `first` on, gathered from as many samples as they lie in; shape (count,), in the file's own type."""
        found: Tokens = np.empty(count, self._dtype)
        sample, filled = int(np.searchsorted(self._end_S, first, side="right")), 0
        while filled < count:
            end = int(self._end_S[sample])
            before = int(self._end_S[sample - 1]) if sample else 0
            within = first + filled - before
            taken = min(end - first - filled, count - filled)
            offset = int(self._byte_S[sample]) + within * self._dtype.itemsize
            found[filled : filled + taken] = np.frombuffer(self._map, self._dtype, taken, offset)
            filled, sample = filled + taken, sample + 1
        return found

    def before(self, token: int) -> int:
        """How many samples begin before a token."""
        return int(np.searchsorted(self.starts(0, len(self._end_S)), token))

    def starts(self, first: int, stop: int) -> Int64s:
        """First tokens of samples `first` to `stop`; fewer where there are fewer samples."""
        start_S: Int64s = np.concatenate([[0], self._end_S[:-1]])
        return start_S[first:stop]
