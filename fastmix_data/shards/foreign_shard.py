"""A range of a foreign file, read as a shard is: blocks of T tokens of its own and the next one, without a byte copied on disk."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Mask, Starts, Tokens
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.foreign.mds import MdsTokens
from fastmix_data.foreign.storage import Stored
from fastmix_data.shards.shard_format import EXAMPLE_START, SequenceViews, cut_sequences

_NO_KEY, _LONGEST_NAME = re.compile(r"[^A-Za-z0-9_-]"), 40  # keys are names of files in a tar
_REMEDY = "put the file back as it was, or run `fastmix preprocess --replace`"


class ForeignShard:
    """What all of them have.

    Attributes:
        key_prefix: what keys of blocks start with: the file's name, and a hash of its path, as many folders have a `part-0`.
        first_block: number of block 0 in the file.
    """

    def __init__(self, root: Path, stored: Stored, *, num_blocks: int, block_tokens: int) -> None:
        """Name the range."""
        self.path, self.num_blocks = root / stored.path, num_blocks
        self.first_block = stored.first_token // block_tokens
        name = _NO_KEY.sub("_", self.path.stem)[:_LONGEST_NAME]
        self.key_prefix = f"{name}-{zlib.crc32(stored.path.encode(errors='surrogateescape')):08x}-"
        self.loss_mask_NT: Mask | None = None
        self.starts_NT: Starts | None = None

    def key(self, block: int) -> str:
        """A name for a block, unique in the corpus."""
        return f"{self.key_prefix}{self.first_block + block:010d}"


class FlatShard(ForeignShard):
    """Blocks of a file that is nothing but tokens: overlapping views of its memory map.

    Attributes:
        tokens_NT: (num_blocks, block_tokens + 1).
        loss_mask_NT, starts_NT: same shape, uint8, or None. Where examples begin is told by the ends of documents.
    """

    def __init__(self, root: Path, stored: Stored, *, num_blocks: int, block_tokens: int, eos_id: int) -> None:
        """Map the range that a row or part speaks of; raises CorruptArtefactError where the file has not all of it."""
        super().__init__(root, stored, num_blocks=num_blocks, block_tokens=block_tokens)
        tokens_T: Tokens = _mapped(self.path, np.dtype(stored.dtype), stored.first_token, num_blocks * block_tokens + 1)
        self.tokens_NT: Tokens = _in_blocks(tokens_T, num_blocks)
        if stored.has_mask:
            mask_T = _mapped(root / stored.mask_path, np.dtype("u1"), stored.first_token, len(tokens_T))
            self.loss_mask_NT = _in_blocks(mask_T, num_blocks)
            # A byte of memory for each token of the shard, as long as it is open: the one thing that is not in the file.
            starts_T = np.zeros(len(tokens_T), np.uint8)
            starts_T[0] = EXAMPLE_START
            starts_T[1:][tokens_T[:-1] == eos_id] = EXAMPLE_START
            self.starts_NT = _in_blocks(starts_T, num_blocks)

    def sequences(self, length: int) -> SequenceViews:
        """All sequences of a length that divides the block."""
        mask, starts = (None if part is None else cut_sequences(part, length) for part in (self.loss_mask_NT, self.starts_NT))
        return SequenceViews(cut_sequences(self.tokens_NT, length), mask, starts)


class GatheredShard(ForeignShard):
    """Blocks of a file whose tokens do not lie end to end: whoever asks for one gets a copy in memory.

    Attributes:
        tokens_NT: answers `[block]`, `[block, columns]` and `[blocks, columns]` as an array of shape (num_blocks, block_tokens + 1)
            does, for blocks next to each other.
        loss_mask_NT, starts_NT: None.
    """

    def __init__(self, root: Path, stored: Stored, *, num_blocks: int, block_tokens: int) -> None:
        """Map the file; raises CorruptArtefactError where it has not all of the range."""
        super().__init__(root, stored, num_blocks=num_blocks, block_tokens=block_tokens)
        tokens = MdsTokens(self.path, stored.storage)
        if tokens.num_tokens < stored.first_token + num_blocks * block_tokens + 1:
            raise CorruptArtefactError(self.path, f"has {tokens.num_tokens} tokens, fewer than were recorded", _REMEDY)
        self._gathered = _Gathered(tokens, np.dtype(stored.dtype), stored.first_token, num_blocks, block_tokens)
        self.tokens_NT: Any = self._gathered

    def sequences(self, length: int) -> SequenceViews:
        """All sequences of a length that divides the block."""
        tokens: Any = _GatheredSequences(self._gathered, length)
        return SequenceViews(tokens, None, None)


class _Gathered:
    def __init__(
        self, tokens: MdsTokens, dtype: np.dtype[np.unsignedinteger], first: int, num_blocks: int, block_tokens: int
    ) -> None:
        self._tokens, self._dtype, self._first = tokens, dtype, first
        self.shape = (num_blocks, block_tokens + 1)
        self.block_tokens = block_tokens

    def run(self, start: int, count: int) -> Tokens:
        """Tokens by their place in the shard, shape (count,)."""
        return self._tokens.read(self._first + start, count).astype(self._dtype, copy=False)

    def __getitem__(self, key: Any) -> Tokens:
        block, *rest = key if isinstance(key, tuple) else (key,)
        start, stop, step = block.indices(self.shape[0]) if isinstance(block, slice) else (int(block), int(block) + 1, 1)
        assert step == 1 and start >= 0
        blocks_NT = _in_blocks(self.run(start * self.block_tokens, (stop - start) * self.block_tokens + 1), stop - start)
        found: Tokens = blocks_NT[slice(None) if isinstance(block, slice) else 0, *rest]
        return found


class _GatheredSequences:
    """What `tokens[block, sequence]` is asked of."""

    def __init__(self, gathered: _Gathered, length: int) -> None:
        self._gathered, self._length = gathered, length
        num_blocks, width = gathered.shape
        self.shape = (num_blocks, (width - 1) // length, length + 1)

    def __getitem__(self, key: tuple[int, int]) -> Tokens:
        block, sequence = key
        return self._gathered.run(block * self._gathered.block_tokens + sequence * self._length, self._length + 1)


def _mapped(path: Path, dtype: np.dtype[Any], first: int, count: int) -> npt.NDArray[Any]:
    """A range of a file as an array over its memory map; not all of the file, of which 30 TB would not fit the address space."""
    try:
        if path.stat().st_size >= (first + count) * dtype.itemsize:
            # The plain array: a memmap's own indexing takes twice the time.
            return np.memmap(path, dtype, "r", first * dtype.itemsize, (count,)).view(np.ndarray)
    except FileNotFoundError as error:
        raise CorruptArtefactError(path, "the file is missing", _REMEDY) from error
    raise CorruptArtefactError(path, f"is cut short: token {first + count - 1} is beyond its end", _REMEDY)


def _in_blocks(run_T: npt.NDArray[Any], num_blocks: int) -> npt.NDArray[Any]:
    """Blocks of a run, each with the first token of the next: a view of shape (num_blocks, block_tokens + 1)."""
    block_tokens, itemsize = (len(run_T) - 1) // num_blocks, run_T.itemsize
    return np.lib.stride_tricks.as_strided(
        run_T, shape=(num_blocks, block_tokens + 1), strides=(block_tokens * itemsize, itemsize), writeable=False
    )
