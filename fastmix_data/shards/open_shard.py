"""Opening what a row of a catalog or a part of a manifest speaks of, wherever its tokens lie."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastmix_data.foreign.mds import is_mds
from fastmix_data.foreign.storage import FLAT, Stored
from fastmix_data.shards.foreign_shard import FlatShard, GatheredShard
from fastmix_data.shards.shard_format import ShardLayout, StridedShard, cut_shard, encode_shard, shard_layout

Shard = StridedShard | FlatShard | GatheredShard
_MOST_OPEN = 8192


def max_open_shards() -> int:
    """How many shards a reader keeps open, of which those used last."""
    # Each is a map or two of the 65,530 that Linux gives a process, and its map holds a file descriptor, of which many have 1,024. A
    # process may have a few readers.
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if allowed == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, allowed // 4))


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


def tar_of_blocks(shard: Shard, *, layout: ShardLayout, start: int, stop: int) -> bytes:
    """Bytes of a shard of ours that holds blocks `start` to `stop` of one; those of foreign files are copied for it."""
    if isinstance(shard, StridedShard):
        return cut_shard(shard, start=start, stop=stop)

    def run(stored_NT: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
        blocks_NT = stored_NT[start:stop, :]
        return np.append(blocks_NT[:, :-1].reshape(-1), blocks_NT[-1, -1])

    mask, starts = shard.loss_mask_NT, shard.starts_NT
    encoded = encode_shard(
        run(shard.tokens_NT),
        layout=layout,
        key_prefix=shard.key_prefix,
        first_number=shard.first_block + start,
        num_blocks=stop - start,
        loss_mask=None if mask is None else (run(mask) != 0).astype(np.uint8),
        starts=None if starts is None else run(starts).astype(np.uint8),
    )
    return encoded.tobytes()
