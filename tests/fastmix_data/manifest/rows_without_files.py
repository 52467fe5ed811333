"""Catalog rows without files, for tests in which only their sizes matter."""

from __future__ import annotations

from fastmix_data.shards.catalog import ShardRow

BLOCK = 16


def rows_without_files(num_tokens: list[int], shard_blocks: int, source: str = "s") -> list[ShardRow]:
    """Rows of partitions of these many tokens."""
    rows = []
    for partition, tokens in enumerate(num_tokens):
        num_blocks = -(-tokens // BLOCK)
        for number, first in enumerate(range(0, num_blocks, shard_blocks)):
            count = min(shard_blocks, num_blocks - first)
            here = min(count * BLOCK, tokens - first * BLOCK)
            labels = min(count * BLOCK, tokens - 1 - first * BLOCK)
            path = f"{source}/{partition}-{number}.tar"
            rows.append(ShardRow(source, "train", path, count, here, labels, labels, 1, "<u2", False, 1, "0"))
    return rows
