"""What flat files of a manifest have to hold, taken from its shards by other code than the exports'."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from fastmix_data.manifest.manifest import Manifest
from fastmix_data.shards.shard_format import StridedShard


class Run(NamedTuple):
    """Tokens of a pool one after the other; whether each carries loss, and whether a document, or padding, begins with it."""

    tokens: list[int]
    loss: list[bool]
    begins: list[bool]
    repeats: int

    def windows(self, length: int) -> list[list[int]]:
        """Whole windows of one pass."""
        return [self.tokens[start : start + length] for start in range(0, len(self.tokens) - length + 1, length)]


def runs_of(manifest: Manifest) -> dict[str, Run]:
    """The run of each pool, by the names of `pools_of`; documents of sources without a mask end with the end-of-text token."""
    runs: dict[str, Run] = defaultdict(lambda: Run([], [], [], 0))
    for part in manifest.parts:
        is_partial = not manifest.has_every_block(part.pool)
        name = f"{part.source}.rest" if is_partial else part.source
        tokens, loss, begins, _ = runs[name]
        shard = StridedShard.detect(manifest.root_path / part.path)
        goes_on = bool(tokens) and not is_partial and _number(part.path) > 0 and tokens[-1] != manifest.eos_id
        for block in range(part.block_start, part.block_stop):
            for at in range(min(manifest.block_tokens, part.num_tokens - (block - part.block_start) * manifest.block_tokens)):
                is_first = block == part.block_start and at == 0
                if shard.loss_mask_NT is None or shard.starts_NT is None:
                    loss.append(True)
                    begins.append(not goes_on if is_first else tokens[-1] == manifest.eos_id)
                else:
                    loss.append(bool(shard.loss_mask_NT[block, at]))
                    begins.append(is_first or bool(shard.starts_NT[block, at]))
                tokens.append(int(shard.tokens_NT[block, at]))
        runs[name] = Run(tokens, loss, begins, part.repeats)
    return dict(runs)


def _number(path: str) -> int:
    """Of a shard within its partition."""
    return int(path.removesuffix(".tar").rsplit("-", 1)[1])


def padding_of(manifest: Manifest, source: str) -> set[int]:
    """Tokens, each of which is found once in a source of the tests, that are padding."""
    found: set[int] = set()
    for part in manifest.parts:
        shard = StridedShard.detect(manifest.root_path / part.path)
        if part.source == source and shard.starts_NT is not None:
            kinds = np.asarray(shard.starts_NT[:, :-1])
            for tokens_T, kinds_T in zip(shard.tokens_NT[:, :-1], kinds, strict=True):
                inside = False
                for token, kind in zip(tokens_T.tolist(), kinds_T.tolist(), strict=True):
                    inside = kind == 2 if kind else inside
                    found |= {token} if inside else set()
    return found
