"""Opening what a row of a catalog or a part of a manifest speaks of, wherever its tokens lie."""

from __future__ import annotations

from pathlib import Path

from fastmix_data.foreign.mds import is_mds
from fastmix_data.foreign.storage import FLAT, Stored
from fastmix_data.shards.foreign_shard import FlatShard, GatheredShard
from fastmix_data.shards.shard_format import StridedShard, shard_layout

Shard = StridedShard | FlatShard | GatheredShard


def open_shard(root: Path, stored: Stored, *, num_blocks: int, block_tokens: int, eos_id: int) -> Shard:
    """Map the tokens of a row or part.

    Args:
        root: folder that its path starts from.
        num_blocks: of the whole shard.
        eos_id: tells where examples begin in foreign files with masks.

    Raises:
        CorruptArtefactError: the file is missing, cut short, or not what was recorded.
    """
    if stored.storage == FLAT:
        return FlatShard(root, stored, num_blocks=num_blocks, block_tokens=block_tokens, eos_id=eos_id)
    if is_mds(stored.storage):
        return GatheredShard(root, stored, num_blocks=num_blocks, block_tokens=block_tokens)
    return StridedShard(root / stored.path, shard_layout(block_tokens, stored.dtype, stored.has_mask))
