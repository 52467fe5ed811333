"""Which foreign files a pool is, token for token: an export into their own format names them, and writes no tokens."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fastmix_data.exports.format import ExportRequest
from fastmix_data.exports.pools import Pool, common_dtype, pools_of
from fastmix_data.foreign.storage import FLAT, TAIL
from fastmix_data.manifest.parts import Part


@dataclass(frozen=True)
class NamedFile:
    """A foreign file that is read as it lies.

    Attributes:
        number: of the file within its pool.
        tokens: its path, absolute.
        mask: that of its masks, absolute; None where all its tokens carry loss.
        dtype: of its tokens.
    """

    pool: str
    number: int
    tokens: str
    mask: str | None
    dtype: str
    num_tokens: int

    @property
    def name(self) -> str:
        """Unique in the export: a pool's name has no dot but that of `.rest`."""
        return f"{self.pool}.{self.number:05d}"


_Named = TypeVar("_Named", bound=NamedFile)


def named_files(request: ExportRequest, kind: type[_Named], *, is_own: Callable[[Part], bool]) -> dict[str, list[_Named]]:
    """The files of the pools that need not be written, by the pools' names: none unless files are asked for by reference.

    Args:
        kind: the format's own class of them.
        is_own: whether a part's file is of the format that is written. All files of an export have one type of tokens besides.
    """
    if request.files != "reference":
        return {}
    manifest, dtype = request.manifest, common_dtype(request.manifest)

    def absolute(path: str) -> str:
        return os.path.normpath(request.root / path)

    found = {}
    for pool in pools_of(manifest):
        parts = whole_files(pool, block_tokens=manifest.block_tokens) if manifest.has_every_block(pool.parts[0].pool) else ()
        if parts and all(np.dtype(part.dtype) == dtype and is_own(part) for part in parts):
            found[pool.name] = [
                kind(
                    pool.name,
                    number,
                    absolute(part.path),
                    absolute(part.mask_path) if part.mask_path else None,
                    dtype.str,
                    part.bytes // dtype.itemsize,
                )
                for number, part in enumerate(parts)
            ]
    return found


def whole_files(pool: Pool, *, block_tokens: int) -> tuple[Part, ...]:
    """A part of each file whose tokens, all of them and nothing else, are one pass over the pool; empty if it is not of whole files.

    The part's `path`, `mask_path` and `dtype` are those of the file. None of a file may be held out, and none of it may lie in another
    pool: its source is read in whole epochs.
    """
    first: dict[str, Part] = {}
    in_blocks: Counter[str] = Counter()
    for part in pool.parts:
        if part.storage not in (FLAT, TAIL) or not part.is_whole_shard:
            return ()
        if part.storage == FLAT:
            first.setdefault(part.path, part)
            in_blocks[part.path] += part.num_tokens
    sizes = {path: part.bytes // np.dtype(part.dtype).itemsize for path, part in first.items()}
    # Ranges of a file do not overlap. With all its blocks there, the tails are what is left of these files, or of smaller ones too.
    has_all_blocks = all(in_blocks[path] == (size - 1) // block_tokens * block_tokens for path, size in sizes.items())
    return tuple(first.values()) if has_all_blocks and pool.num_tokens == sum(sizes.values()) else ()
