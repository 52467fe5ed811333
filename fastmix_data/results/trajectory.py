"""The trajectory of a search: one row per update of the mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from fastmix_data.arrays import Float64s
from fastmix_data.artefacts import write_parquet

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TrajectoryRow:
    """State after an update, and what it was made from.

    `weights` and `scores` have one entry per source, `scores` being alignments with the target gradient per loss token. Losses are
    nats per loss token: of the training mixture since the last row, and of the fresh target batch of this update.

    `target_weights` are those of this update's target gradient; `target_losses` are estimates from the batches so far, None for a
    target that was in no batch yet. Both have one entry per target.

    `alignment`, `divisor` and `loss` are this update's new evidence, before smoothing: sums over the scored batch by source, of alignments,
    of what they are divided by (loss tokens, or norms with `score: per_gradient_norm`) and of training losses in nats; 0 for a source that
    was not in the batch.
    """

    step: int
    tokens: int
    weights: list[float]
    scores: list[float]
    train_loss: float
    target_loss: float
    target_weights: list[float] = field(default_factory=list)
    target_losses: list[float | None] = field(default_factory=list)
    alignment: list[float] = field(default_factory=list)
    divisor: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)


_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("tokens", pa.int64()),
        ("weights", pa.list_(pa.float64())),
        ("scores", pa.list_(pa.float64())),
        ("train_loss", pa.float64()),
        ("target_loss", pa.float64()),
        ("target_weights", pa.list_(pa.float64())),
        ("target_losses", pa.list_(pa.float64())),
        ("alignment", pa.list_(pa.float64())),
        ("divisor", pa.list_(pa.float64())),
        ("loss", pa.list_(pa.float64())),
    ]
)


class Trajectory:
    """Rows so far, in the order of the steps."""

    def __init__(self, rows: Sequence[TrajectoryRow] = ()) -> None:
        """Start from rows of an earlier run."""
        self.rows = list(rows)

    def weights_since(self, step: float) -> Float64s:
        """Weights after each update later than `step`, shape (U, K); at least the last one."""
        chosen = [row.weights for row in self.rows if row.step > step] or [self.rows[-1].weights]
        return np.array(chosen)

    def target_weights_since(self, step: float) -> Float64s:
        """Weights of the targets at each update later than `step`, shape (U, G); at least the last one."""
        chosen = [row.target_weights for row in self.rows if row.step > step] or [self.rows[-1].target_weights]
        return np.array(chosen)

    def save(self, path: Path, *, sources: Sequence[str], targets: Sequence[str] = ()) -> None:
        """Write `trajectory.parquet` atomically; the names of sources and targets travel in its metadata."""
        names = {"schema_version": SCHEMA_VERSION, "sources": list(sources), "targets": list(targets)}
        metadata = {b"fastmix": orjson.dumps(names)}
        write_parquet(path, pa.Table.from_pylist(self.state(), schema=_SCHEMA.with_metadata(metadata)))

    def state(self) -> list[dict[str, Any]]:
        """JSON-able rows."""
        return [asdict(row) for row in self.rows]

    @classmethod
    def from_state(cls, state: Sequence[dict[str, Any]]) -> Trajectory:
        """Restore `state`."""
        return cls([TrajectoryRow(**row) for row in state])
