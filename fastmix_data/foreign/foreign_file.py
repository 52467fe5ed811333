"""A file of tokens that is not ours: a line of tokens, and what else its format says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fastmix_data.arrays import Int64s, Tokens
from fastmix_data.errors import InputError
from fastmix_data.foreign.mds import MdsTokens, is_mds
from fastmix_data.foreign.storage import FLAT

# How tokens are kept where they can be read as they lie. Ids are never negative, so that signed ones are read as unsigned; those of
# 8 bytes are twice as wide as any vocabulary needs, and those of one too narrow.
_READ_AS = {"uint16": "<u2", "int16": "<u2", "uint32": "<u4", "int32": "<u4"}


class DocumentStarts(Protocol):
    """Where documents begin, as a format says it; looked up in its own files, of which nothing is kept."""

    def before(self, token: int) -> int:
        """How many documents begin before a token."""
        ...

    def starts(self, first: int, stop: int) -> Int64s:
        """First tokens of documents `first` to `stop`, ascending; fewer where there are fewer documents."""
        ...


@dataclass(frozen=True)
class ForeignFile:
    """One file of tokens.

    Attributes:
        path: absolute.
        name: what messages call it.
        storage: how tokens lie in it, see `storage.py`.
        dtype: what they are read as.
        num_tokens: of the whole file.
        mask: a file with a byte for each token, 1 where it carries loss, else 0; None where all do.
        beside: files that say where documents or samples lie, and belong to it as its own bytes do.
        documents: where documents begin; None where the format does not say.
    """

    path: Path
    name: str
    storage: str
    dtype: str
    num_tokens: int
    mask: Path | None = None
    beside: tuple[Path, ...] = ()
    documents: DocumentStarts | None = field(default=None, compare=False)

    def read(self, first: int, count: int) -> Tokens:
        """Tokens from `first` on, shape (count,); fewer at the end of the file."""
        count = min(count, self.num_tokens - first)
        if is_mds(self.storage):
            return MdsTokens(self.path, self.storage).read(first, count).astype(self.dtype)
        dtype = np.dtype(self.dtype)
        return np.fromfile(self.path, dtype, count, offset=first * dtype.itemsize)

    def read_mask(self, first: int, count: int) -> Tokens:
        """The mask of as many tokens; for files that have one."""
        assert self.mask is not None
        return np.fromfile(self.mask, np.uint8, min(count, self.num_tokens - first), offset=first)


def flat_file(
    path: Path,
    *,
    name: str,
    where: str,
    dtype: str,
    mask: Path | None = None,
    beside: tuple[Path, ...] = (),
    documents: DocumentStarts | None = None,
) -> ForeignFile:
    """A file that is tokens from its first byte to its last.

    Args:
        where: key of the recipe that errors point at.
        dtype: NumPy's name of the type that they were written as.

    Raises:
        InputError: it cannot be such a file, or its mask is not as long.
    """
    if dtype not in _READ_AS:
        problem = f"the tokens of {name} are {dtype}, and are read where they lie only as 2 or 4 bytes each"
        raise InputError(where, problem, "write them as uint16 or uint32")
    read_as, num_bytes = _READ_AS[dtype], path.stat().st_size
    num_tokens, rest = divmod(num_bytes, np.dtype(read_as).itemsize)
    if rest or not num_tokens:
        problem = f"{name} has {num_bytes} bytes, which is no whole number of {dtype} tokens" if rest else f"{name} is empty"
        raise InputError(where, problem, "give the dtype it was written as" if rest else "remove it or fill it")
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            problem = f"{name} begins with a header of NumPy, where its tokens should"
            raise InputError(where, problem, "write it without one, as `array.tofile(path)` does")
    if mask is not None and (found := mask.stat().st_size) != num_tokens:
        problem = f"{mask.name} has {found} bytes, and {name} {num_tokens} tokens: a mask is one byte for each"
        raise InputError(where, problem, "give the mask that was written beside it")
    return ForeignFile(path, name, FLAT, read_as, num_tokens, mask, beside, documents)
