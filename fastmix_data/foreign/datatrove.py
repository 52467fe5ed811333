"""datatrove's token files: `.ds` is raw tokens; beside it `.ds.index` has the ends of documents, `.ds.metadata` the width of a token,
`.ds.loss` a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.errors import InputError
from fastmix_data.foreign.foreign_file import ForeignFile, flat_file

_DTYPES = {"2": "uint16", "4": "uint32"}


def datatrove_file(path: Path, *, name: str, where: str, dtype: str | None) -> ForeignFile:
    """A token file.

    Args:
        dtype: where the recipe states it; else the metadata do.

    Raises:
        InputError: it is none, nothing says how wide a token is, or what lies beside it does not fit.
    """
    index, (metadata, loss) = documents_index(path), (path.with_name(path.name + ending) for ending in (".metadata", ".loss"))
    stated = _dtype_of(metadata)
    if stated is None and dtype is None:
        raise InputError(where, f"{name} has no {metadata.name} that says how wide a token is", "give dtype: uint16 or uint32")
    if stated is not None and dtype not in (None, stated):
        raise InputError(where, f"dtype is {dtype}, and {metadata.name} says {stated}", "leave dtype out")
    has_index = index.is_file()
    found = flat_file(
        path,
        name=name,
        where=where,
        dtype=stated or dtype or "",
        mask=loss if loss.is_file() else None,
        beside=(index,) if has_index else (),
        documents=DatatroveDocuments(index) if has_index else None,
    )
    if has_index:
        _require_end(index, found, where=where)
    return found


def documents_index(path: Path) -> Path:
    """Where the ends of a token file's documents would be."""
    return path.with_name(f"{path.name}.index")


class DatatroveDocuments:
    """Documents of a file of ascending uint64 ends, which is searched where it lies."""

    def __init__(self, path: Path) -> None:
        """Name the `.ds.index`."""
        self._path = path
        self._num_documents = path.stat().st_size // 8

    def before(self, token: int) -> int:
        """See `DocumentStarts`."""
        # Document d begins where document d - 1 ends, and the first at 0.
        if token <= 0 or not self._num_documents:
            return 0
        return min(self._num_documents, 1 + int(np.searchsorted(self._ends(), np.uint64(token))))

    def starts(self, first: int, stop: int) -> Int64s:
        """See `DocumentStarts`."""
        stop = min(stop, self._num_documents)
        if first >= stop:
            return np.empty(0, np.int64)
        ends_D = self._ends()[max(0, first - 1) : stop - 1].astype(np.int64)
        return ends_D if first else np.concatenate([[0], ends_D])

    def _ends(self) -> np.memmap:
        return np.memmap(self._path, "<u8", "r", shape=self._num_documents)


def _dtype_of(metadata: Path) -> str | None:
    """`tokenizer|token_size` is the first line."""
    if not metadata.is_file():
        return None
    first = metadata.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return _DTYPES.get(first.rpartition("|")[2].strip())


def _require_end(index: Path, file: ForeignFile, *, where: str) -> None:
    with index.open("rb") as content:
        size = index.stat().st_size
        content.seek(max(0, size - 8))
        last = int.from_bytes(content.read(8), "little")
    if size % 8 or last != file.num_tokens:
        problem = f"the last document of {index.name} ends at token {last}, and {file.name} has {file.num_tokens}"
        raise InputError(where, problem, "give the two that belong together; dtype may be wrong where no .ds.metadata says it")
