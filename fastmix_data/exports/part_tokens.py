"""The tokens of a part as one run, for formats that know nothing of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmix_data.arrays import Bools, Starts, Tokens
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.foreign.identity import identity_now
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part


@dataclass(frozen=True)
class PartTokens:
    """A part's own tokens, in order; the label of the last one is not among them unless it is the next one's first token.

    Attributes:
        tokens_T: in the shard's dtype, shape (T,).
        carries_loss_T: whether each token carries loss where it is the label, shape (T,); None where all do.
        starts_T: as in `starts.npy`: 1 where an example begins, 2 where padding does; None in sources without a mask.
    """

    tokens_T: Tokens
    carries_loss_T: Bools | None
    starts_T: Starts | None


def read_part(manifest: Manifest, part: Part, *, root: Path, first: int = 0, stop: int | None = None) -> PartTokens:
    """Read one pass over a part into memory, or its tokens `first` to `stop`.

    Args:
        root: where the shards are.
        first: where a block begins.

    Raises:
        CorruptArtefactError: the shard is missing, or not what the manifest recorded.
    """
    shard, block_tokens = manifest.open(part, root=root), manifest.block_tokens
    stop = part.num_tokens if stop is None else min(stop, part.num_tokens)
    assert first % block_tokens == 0
    blocks = slice(part.block_start + first // block_tokens, part.block_start - (-stop // block_tokens))

    def own(stored_NT: np.ndarray) -> np.ndarray:
        # The last column of a block is the next block's first token. Reshaping makes the copy.
        return stored_NT[blocks, :-1].reshape(-1)[: stop - first]

    mask, starts = shard.loss_mask_NT, shard.starts_NT
    return PartTokens(
        own(shard.tokens_NT),
        None if mask is None else own(mask).astype(np.bool_),
        None if starts is None else own(starts),
    )


def label_remarks(manifest: Manifest) -> list[str]:
    """What formats that take tokens as one run cannot say of a manifest, in sentences."""
    if not manifest.sequence_sources:
        return []
    return [
        f"its shards hold sequences of {manifest.block_tokens} tokens in the order of the run, so the label at the end of each is the next "
        "one's first token, not its own next"
    ]


def check_unchanged(part: Part, *, root: Path) -> None:
    """Refuse a shard whose bytes are not those that the manifest was made from; reads all of them, of foreign files a sample.

    Raises:
        CorruptArtefactError: says which.
    """
    path = root / part.path
    try:
        found = identity_now(part, root=root)
    except FileNotFoundError as error:
        raise CorruptArtefactError(path, "the shard is missing", "restore it, or run `fastmix preprocess` again") from error
    if found != part.sha256:
        problem = "changed since the manifest was made"
        raise CorruptArtefactError(path, problem, "restore it, or run `fastmix preprocess` and `fastmix emit --replace`")
