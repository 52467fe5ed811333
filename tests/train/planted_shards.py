"""Shards of tokens that a test made up, without text and tokenizer, and recipes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.recipe.training import TrainingSection
from fastmix_data.shards.catalog import ShardRow
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, write_shard

BLOCK, WINDOW = 64, 32


def training_and_search(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Both sections of a recipe from keys of either."""
    training = {key: value for key, value in settings.items() if key in TrainingSection.model_fields}
    return {"training": training, "search": {key: value for key, value in settings.items() if key not in training}}


def write_split(
    root: Path,
    source: str,
    split: str,
    tokens: np.ndarray,
    *,
    masked: bool = False,
    loss_until: int | None = None,
    block: int = BLOCK,
) -> ShardRow:
    """One shard of a source, padded to whole blocks; `masked` has examples of WINDOW tokens, with loss on their
    second quarter, up to `loss_until` if given."""
    layout = ShardLayout(block, np.dtype("<u2"), masked)
    num_blocks = -(-len(tokens) // block)
    padded = np.zeros(num_blocks * block + 1, np.uint16)
    padded[: len(tokens)] = tokens
    within = np.arange(len(padded)) % WINDOW
    mask, starts = ((within // 8 == 1).astype(np.uint8), (within == 0).astype(np.uint8)) if masked else (None, None)
    if mask is not None and loss_until is not None:
        mask[loss_until:] = 0
    buffer = encode_shard(
        padded, layout=layout, key_prefix=f"{source}-{split}-", num_blocks=num_blocks, loss_mask=mask, starts=starts
    )
    path = f"shards/{source}/{split}.tar"
    written = write_shard(root / path, buffer, layout=layout)
    num_labels = len(tokens) - 1
    num_loss = num_labels if mask is None else int(mask[1 : num_labels + 1].sum())
    return ShardRow(
        source, split, path, num_blocks, len(tokens), num_labels, num_loss, 1, "<u2", masked, written.num_bytes, written.sha256
    )
