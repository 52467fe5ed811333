"""Megatron's indexed data sets: `PREFIX.bin` is tokens, `PREFIX.idx` says their type and where sequences and documents begin.

The index is `MMIDIDX`, a version, a code of the type, the numbers of sequences and of document ends, then lengths (int32), positions in
bytes (int64) and, for each document and the end, the number of its first sequence (int64). It is checked in pieces: a corpus of 15 T
tokens has billions of documents.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.errors import InputError
from fastmix_data.foreign.foreign_file import ForeignFile, flat_file

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}
_CHECKED_AT_ONCE = 1 << 20
_AGAIN = "write both again with Megatron's preprocess_data.py"


def megatron_file(bin_path: Path, *, name: str, where: str) -> ForeignFile:
    """The data set of a `.bin` and the `.idx` beside it.

    Raises:
        InputError: there is no index, it is none, or it does not fit the tokens.
    """
    index = _open_index(bin_path, name=name, where=where)
    if not index.num_sequences:
        raise InputError(where, f"{_idx_name(name)} lists no sequence", "remove it or fill it")
    num_bytes = index.require_end_to_end(name=_idx_name(name), where=where)
    if (found := bin_path.stat().st_size) != num_bytes:
        problem = f"{_idx_name(name)} speaks of {num_bytes} bytes of tokens, and {name} has {found}"
        raise InputError(where, problem, f"give the two that belong together, or {_AGAIN}")
    documents = MegatronDocuments(index) if index.num_documents > 0 else None
    return flat_file(bin_path, name=name, where=where, dtype=index.dtype, beside=(index.path,), documents=documents)


def megatron_documents(bin_path: Path, *, where: str) -> MegatronDocuments | None:
    """Documents of a `.bin` by the index beside it, of which only the header is looked at; None if it has none.

    Raises:
        InputError: it is no index.
    """
    index = _open_index(bin_path, name=bin_path.name, where=where)
    return MegatronDocuments(index) if index.num_documents > 0 else None


def _idx_name(name: str) -> str:
    return str(Path(name).with_suffix(".idx"))


def _open_index(bin_path: Path, *, name: str, where: str) -> _Index:
    idx_path = bin_path.with_suffix(".idx")
    if not idx_path.is_file():
        raise InputError(where, f"{name} has no {idx_path.name} beside it", "give the prefix of a .bin and its .idx")
    size = idx_path.stat().st_size
    with idx_path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise InputError(where, f"{_idx_name(name)} is not an index of Megatron: it does not begin with MMIDIDX", _AGAIN)
    _, version, code, num_sequences, num_ends = _HEADER.unpack(header)
    if version != 1 or code not in _DTYPES:
        problem = f"{_idx_name(name)} is of version {version} and type {code}; known are version 1 and types 1 to 8"
        raise InputError(where, problem, _AGAIN)
    # After it, where sequences have modes, one byte for each.
    wanted = _HEADER.size + 12 * num_sequences + 8 * num_ends
    if size not in (wanted, wanted + num_sequences):
        problem = (
            f"{_idx_name(name)} has {size} bytes, and for its {num_sequences} sequences and {num_ends} ends it takes {wanted}"
        )
        raise InputError(where, problem, _AGAIN)
    return _Index(idx_path, _DTYPES[code], num_sequences, num_ends)


@dataclass(frozen=True)
class _Index:
    """The three arrays of an index, mapped anew wherever they are asked for: a plan that holds no map can travel."""

    path: Path
    dtype: str
    num_sequences: int
    num_ends: int

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def num_documents(self) -> int:
        return self.num_ends - 1

    def lengths(self) -> np.memmap:
        return np.memmap(self.path, "<i4", "r", _HEADER.size, self.num_sequences)

    def pointers(self) -> np.memmap:
        return np.memmap(self.path, "<i8", "r", _HEADER.size + 4 * self.num_sequences, self.num_sequences)

    def ends(self) -> np.memmap:
        return np.memmap(self.path, "<i8", "r", _HEADER.size + 12 * self.num_sequences, self.num_ends)

    def require_end_to_end(self, *, name: str, where: str) -> int:
        """Bytes of all sequences, which have to lie in the file in their order and without gaps.

        Raises:
            InputError: they do not.
        """
        lengths_S, pointers_S, end = self.lengths(), self.pointers(), 0
        for first in range(0, self.num_sequences, _CHECKED_AT_ONCE):
            chosen = slice(first, first + _CHECKED_AT_ONCE)
            sizes = lengths_S[chosen].astype(np.int64) * self.itemsize
            ends = end + np.cumsum(sizes)
            wrong = np.flatnonzero((pointers_S[chosen] != ends - sizes) | (sizes < 0))
            if len(wrong):
                number = first + int(wrong[0])
                here, wanted = int(pointers_S[number]), int(ends[wrong[0]] - sizes[wrong[0]])
                problem = f"sequence {number} of {name} begins at byte {here}, and the one before ends at {wanted}"
                remedy = "only sequences that lie end to end are read where they are; Megatron's merge_datasets.py writes them so"
                raise InputError(where, problem, remedy)
            end = int(ends[-1])
        return end


class MegatronDocuments:
    """Documents of an index, by binary search in the file."""

    def __init__(self, index: _Index) -> None:
        """Of an index that has some."""
        self._index = index

    def before(self, token: int) -> int:
        """See `DocumentStarts`."""
        index, ends_D, pointers_S = self._index, self._index.ends(), self._index.pointers()

        def start(document: int) -> int:
            sequence = int(ends_D[document])
            # An empty document at the end begins before no token of the file.
            return int(pointers_S[sequence]) if sequence < index.num_sequences else index.path.stat().st_size << 40

        return bisect_left(range(index.num_documents), token * index.itemsize, key=start)

    def starts(self, first: int, stop: int) -> Int64s:
        """See `DocumentStarts`."""
        index = self._index
        sequence_D = index.ends()[first : min(stop, index.num_documents)]
        # Those without a sequence are at the end.
        start_D: Int64s = index.pointers()[sequence_D[sequence_D < index.num_sequences]].astype(np.int64) // index.itemsize
        return start_D
