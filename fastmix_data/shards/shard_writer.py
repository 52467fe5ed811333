"""A run of tokens cut into shards as it grows; memory is one shard, whatever the length of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmix_data.arrays import Int64s, Mask, Starts, Tokens
from fastmix_data.shards.catalog import ShardRow
from fastmix_data.shards.examples import count_padding
from fastmix_data.shards.shard_format import PADDING_START, ShardLayout, encode_shard, write_shard
from fastmix_data.workdir import Workdir


@dataclass(frozen=True)
class ShardNames:
    """What the shards of one partition's split are called; unique in the corpus."""

    root: Path
    source: str
    split: str
    partition: int

    def path(self, shard: int) -> str:
        """Path of a shard, as the catalog has it."""
        return Workdir(self.root).shard(self.source, self.split, self.partition, shard).relative_to(self.root).as_posix()

    def key_prefix(self, shard: int) -> str:
        """What the keys of a shard's samples start with."""
        return f"{self.source}-{self.split}-{self.partition:06d}-{shard:05d}-"


class ShardStream:
    """Writes the tokens of one (partition, split) as shards of full blocks; only the last is padded.

    Block i owns the tokens [i * B, (i + 1) * B) of the stream and stores the one after them too, the label of its last position,
    also where that token belongs to the next shard.
    """

    def __init__(self, names: ShardNames, *, layout: ShardLayout, max_shard_bytes: int, eos_id: int) -> None:
        """Nothing is written before a shard is full."""
        self._names, self._layout, self._eos_id = names, layout, eos_id
        self._max_blocks = layout.max_blocks(max_shard_bytes)
        self._shard_tokens = self._max_blocks * layout.block_tokens
        # One more than a shard's own tokens: the label of its last position. Untouched pages cost nothing, so a short stream does not
        # pay for a whole shard.
        self._tokens: Tokens = np.empty(self._shard_tokens + 1, layout.dtype)
        self._mask: Mask | None = np.empty(self._shard_tokens + 1, np.uint8) if layout.has_mask else None
        self._starts: Starts | None = np.empty(self._shard_tokens + 1, np.uint8) if layout.has_mask else None
        self._filled = 0
        self._position = 0
        self._num_documents_S: list[int] = []
        self._rows: list[ShardRow] = []

    def append(
        self, tokens: Tokens, *, starts_D: Int64s, loss_mask: Mask | None = None, starts: Starts | None = None
    ) -> tuple[Int64s, Int64s, Int64s]:
        """Add tokens.

        Args:
            starts_D: where documents start within `tokens`, shape (num_documents,).
            loss_mask: one value per token; given exactly if the layout has a mask.
            starts: one value per token, as in `starts.npy`; given with the mask.
        Returns:
            Shard number, block and offset in the block of each document's start, each of shape (num_documents,).
        """
        assert (loss_mask is not None) == (starts is not None) == (self._mask is not None)
        shard_D, within_D = np.divmod(self._position + starts_D, self._shard_tokens)
        block_D, offset_D = np.divmod(within_D, self._layout.block_tokens)
        for shard, count in zip(*np.unique(shard_D, return_counts=True), strict=True):
            self._num_documents_S += [0] * (int(shard) + 1 - len(self._num_documents_S))
            self._num_documents_S[shard] += int(count)
        self._position += len(tokens)
        taken = 0
        while taken < len(tokens):
            count = min(len(tokens) - taken, len(self._tokens) - self._filled)
            here = slice(self._filled, self._filled + count)
            for kept, given in ((self._tokens, tokens), (self._mask, loss_mask), (self._starts, starts)):
                if kept is not None and given is not None:
                    kept[here] = given[taken : taken + count]
            self._filled += count
            taken += count
            if self._filled == len(self._tokens):
                self._write_full_shard()
        return shard_D, block_D, offset_D

    def _write_full_shard(self) -> None:
        self._write(self._max_blocks, num_tokens=self._shard_tokens, num_labels=self._shard_tokens)
        # The one token beyond the full shard was stored as the label of its last position; it is the next shard's first own token.
        for kept in (self._tokens, self._mask, self._starts):
            if kept is not None:
                kept[0] = kept[-1]
        self._filled = 1

    def close(self) -> list[ShardRow]:
        """Write what is left, padded with end-of-text tokens that carry no loss, and describe all shards."""
        # After a full shard the one token carried over is filled, and is a shard of its own if no other follows: none is lost.
        if self._filled:
            num_tokens = self._filled
            num_blocks = -(-num_tokens // self._layout.block_tokens)
            end = num_blocks * self._layout.block_tokens + 1
            self._tokens[num_tokens:end] = self._eos_id
            if self._mask is not None and self._starts is not None:
                self._mask[num_tokens:end] = self._starts[num_tokens:end] = 0
                self._starts[num_tokens] = PADDING_START
            # The last token of the stream has no next one, so its position has no label.
            self._write(num_blocks, num_tokens=num_tokens, num_labels=num_tokens - 1)
            self._filled = 0
        return self._rows

    def _write(self, num_blocks: int, *, num_tokens: int, num_labels: int) -> None:
        shard, end = len(self._rows), num_blocks * self._layout.block_tokens + 1
        mask, starts = (None if part is None else part[:end] for part in (self._mask, self._starts))
        encoded = encode_shard(
            self._tokens[:end],
            layout=self._layout,
            key_prefix=self._names.key_prefix(shard),
            num_blocks=num_blocks,
            loss_mask=mask,
            starts=starts,
        )
        path = self._names.path(shard)
        written = write_shard(self._names.root / path, encoded, layout=self._layout)
        # A token carries loss where it is the label, so the mask counts from the second token on.
        num_loss_tokens = num_labels if mask is None else int(np.count_nonzero(mask[1 : num_labels + 1]))
        self._rows.append(
            ShardRow(
                source=self._names.source,
                split=self._names.split,
                path=path,
                num_blocks=num_blocks,
                num_tokens=num_tokens,
                num_labels=num_labels,
                num_loss_tokens=num_loss_tokens,
                # A shard inside one long document has no start of any.
                num_documents=self._num_documents_S[shard] if shard < len(self._num_documents_S) else 0,
                dtype=self._layout.dtype.str,
                has_mask=self._layout.has_mask,
                bytes=written.num_bytes,
                sha256=written.sha256,
                num_padding=0 if starts is None else count_padding(starts[:num_tokens]),
            )
        )
