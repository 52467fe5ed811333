"""The order of a materialized manifest: its parts one after another, as they were written."""

from __future__ import annotations

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.errors import RecipeError
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.order import Located, ManifestOrder, check_length
from fastmix_data.shards.table_rows import column_of


class WrittenOrder:
    """Where each position of the run lies. Of which source a sequence is, the key of its sample says; `Located` has 0.

    Attributes:
        num_sequences: positions of the run.
        per_block: sequences of a block that is full.
    """

    def __init__(self, manifest: Manifest, *, sequence_length: int) -> None:
        """Count sequences; opens no shard. Raises as `check_length`."""
        check_length(manifest, sequence_length)
        self._length, self.per_block = sequence_length, manifest.block_tokens // sequence_length
        self._num_labels_P, self._block_start_P = (column_of(manifest.parts, name) for name in ("num_labels", "block_start"))
        counts_P = -(-self._num_labels_P // sequence_length)
        self._end_P = np.cumsum(counts_P)
        self._start_P = self._end_P - counts_P
        self.num_sequences = int(counts_P.sum())

    def locate(self, positions_N: Int64s) -> Located:
        """Find the sequences at positions of the run, 0 <= position < num_sequences."""
        part_N = np.searchsorted(self._end_P, positions_N, side="right")
        in_part_N = positions_N - self._start_P[part_N]
        return Located(
            np.zeros(len(positions_N), np.int64),
            part_N,
            self._block_start_P[part_N] + in_part_N // self.per_block,
            in_part_N % self.per_block,
            np.minimum(self._num_labels_P[part_N] - in_part_N * self._length, self._length),
        )


def order_of(manifest: Manifest, *, sequence_length: int, seed: int | None = None) -> ManifestOrder | WrittenOrder:
    """The order that a manifest is read in.

    Args:
        seed: of the order; the manifest's when None.

    Raises:
        RecipeError: as `check_length`; or another seed is asked for, and the shards are in their order already.
        MismatchError: as `ManifestOrder`.
    """
    if not manifest.sequence_sources:
        return ManifestOrder(manifest, sequence_length=sequence_length, seed=seed)
    if seed not in (None, manifest.seed):
        problem = f"its shards hold the order of seed {manifest.seed}, so it cannot be read in that of seed {seed}"
        raise RecipeError(manifest.path, problem, "leave the seed out, or read the manifest that it was materialized from")
    return WrittenOrder(manifest, sequence_length=sequence_length)
