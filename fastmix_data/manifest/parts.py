"""A row of `parts.parquet`: a range of blocks. A manifest may have millions, so they are kept as columns (`TableRows`)."""

from __future__ import annotations

from dataclasses import dataclass

from fastmix_data.foreign.storage import SHARD


@dataclass(frozen=True)
class Part:
    """A range of blocks of one shard, read `repeats` times with the other parts of its pool.

    `num_tokens` and `num_labels` are those of one pass; only the last block of a part can be short, so it has
    `num_labels - (num_blocks - 1) * block_tokens` labels. `pool` is the number of its pool in the manifest, `repeats` the pool's.

    `storage`, `first_token` and `mask_path` are those of the catalog's row: of an import, the shard is a range of a foreign file.
    """

    source: str
    path: str
    sha256: str
    bytes: int
    dtype: str
    has_mask: bool
    shard_blocks: int
    block_start: int
    block_stop: int
    pool: int
    repeats: int
    num_tokens: int
    num_labels: int
    storage: str = SHARD
    first_token: int = 0
    mask_path: str = ""

    @property
    def num_blocks(self) -> int:
        """Blocks of one pass."""
        return self.block_stop - self.block_start

    @property
    def is_whole_shard(self) -> bool:
        """Whether the range is the entire shard."""
        return self.num_blocks == self.shard_blocks
