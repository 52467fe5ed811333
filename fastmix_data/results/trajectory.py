"""The trajectory of a search: one row per update of the mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import write_parquet
from fastmix_data.errors import CorruptArtefactError

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
    target_weights: list[float]
    target_losses: list[float | None]
    alignment: list[float]
    divisor: list[float]
    loss: list[float]


_COLUMN_TYPES = {"int": pa.int64(), "float": pa.float64()}
_SCHEMA = pa.schema(
    [(name, _COLUMN_TYPES.get(str(kind), pa.list_(pa.float64()))) for name, kind in TrajectoryRow.__annotations__.items()]
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

    def save(self, path: Path, *, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Write `trajectory.parquet` atomically; the names of sources and targets travel in its metadata."""
        # Columns are lists without names; a reader that took the order from the recipe would mislabel them after the recipe changed.
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


@dataclass(frozen=True)
class TrajectoryTable:
    """A trajectory as arrays: U updates of K sources and G targets, in the order of `sources` and `targets`.

    `target_losses_UG` is not a number where a target was in no batch yet.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    tokens_U: Float64s
    weights_UK: Float64s
    scores_UK: Float64s
    train_loss_U: Float64s
    target_loss_U: Float64s
    target_weights_UG: Float64s
    target_losses_UG: Float64s


def read_trajectory(path: Path) -> TrajectoryTable | None:
    """Read a trajectory; None if it has no row yet.

    Raises:
        CorruptArtefactError: it is not one.
    """
    try:
        table = pq.read_table(path)
        names = orjson.loads(table.schema.metadata[b"fastmix"])
        sources, targets = tuple(names["sources"]), tuple(names["targets"])
        columns = {name: table[name].to_numpy().astype(np.float64) for name in ("tokens", "train_loss", "target_loss")}
        by_source = {name: _matrix(table, name, len(sources)) for name in ("weights", "scores")}
        by_target = {name: _matrix(table, name, len(targets)) for name in ("target_weights", "target_losses")}
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise CorruptArtefactError(path, "not a trajectory of fastmix", "run `fastmix search --replace`") from error
    if not table.num_rows:
        return None
    return TrajectoryTable(
        sources,
        targets,
        **{f"{name}_U": values for name, values in columns.items()},
        **{f"{name}_UK": values for name, values in by_source.items()},
        **{f"{name}_UG": values for name, values in by_target.items()},
    )


def _matrix(table: pa.Table, name: str, width: int) -> Float64s:
    """A column of lists as an array of `width` columns."""
    return np.array(table[name].to_pylist(), np.float64).reshape(table.num_rows, width)
