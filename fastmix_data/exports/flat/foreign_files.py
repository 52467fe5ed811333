"""Which foreign files a pool is, token for token: what an export into their own format names instead of writing."""

from __future__ import annotations

from collections import Counter

import numpy as np

from fastmix_data.exports.pools import Pool
from fastmix_data.foreign.storage import FLAT, TAIL
from fastmix_data.manifest.parts import Part


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
