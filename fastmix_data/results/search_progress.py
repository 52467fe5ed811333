"""How far a search is, as its metrics tell it while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.results.metrics_file import Line, read_lines
from fastmix_data.results.trajectory import TrajectoryTable
from fastmix_data.workdir import SearchFolder

State = Literal["waiting", "running", "stopped", "failed", "finished"]
STAGES = {
    "start": "starting",
    "reference": "reference run",
    "count": "counting passages",
    "search": "following the scores",
    "trials": "trials",
}


@dataclass(frozen=True)
class Update:
    """An update of the mixture; as a row of the trajectory."""

    step: int
    tokens: int
    weights_K: Float64s
    scores_K: Float64s
    train_loss: float
    target_loss: float
    target_weights_G: Float64s
    target_losses_G: Float64s


@dataclass
class SearchProgress:
    """What the lines so far come to.

    Attributes:
        begin: the newest line that begins a call of the search; None before the first.
        last: the newest line.
        end: the line that ended the newest call; None while it runs.
        updates: of the mixture.
        trials: a line for each.
        reference: a line for each measurement of the reference run.
        rates: what the newest line that has them says of the machines: tokens_per_second, mfu, peak_memory_bytes.
    """

    begin: Line | None = None
    last: Line | None = None
    end: Line | None = None
    updates: list[Update] = field(default_factory=list)
    trials: list[Line] = field(default_factory=list)
    reference: list[Line] = field(default_factory=list)
    rates: Line = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Take in the next line."""
        event, self.last = line["event"], line
        if event == "begin":
            self.begin, self.end = line, None
        elif event == "update":
            self.updates.append(self._update(line))
        elif event == "trial":
            self.trials.append(line)
        elif event == "reference":
            self.reference.append(line)
        elif event == "end":
            self.end = line
        if line.get("tokens_per_second") is not None:
            self.rates = line

    def _update(self, line: Line) -> Update:
        def values(key: str, names: tuple[str, ...]) -> Float64s:
            found = line[key]
            return np.array([found.get(name) for name in names], np.float64)  # null becomes not a number

        weights_K, scores_K = values("weights", self.sources), values("scores", self.sources)
        losses = [float("nan") if line[key] is None else float(line[key]) for key in ("train_loss", "target_loss")]
        weights_G, losses_G = values("target_weights", self.targets), values("target_losses", self.targets)
        return Update(line["step"], line["stage_tokens"], weights_K, scores_K, losses[0], losses[1], weights_G, losses_G)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names, in the catalog's order."""
        return tuple(self.begin["sources"]) if self.begin is not None else ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.begin["targets"]) if self.begin is not None else ()

    @property
    def state(self) -> State:
        """What the newest call of the search is at; one that was killed cannot say so, and is taken to run."""
        if self.begin is None:
            return "waiting"
        state: State = self.end["outcome"] if self.end is not None else "running"
        return state

    @property
    def stage(self) -> str:
        """One of `STAGES`."""
        return str(self.last["stage"]) if self.last is not None else "start"

    @property
    def share_done(self) -> float:
        """Tokens trained on, of all that the search is to train on."""
        if self.last is None:
            return 0.0
        return float(min(1.0, self.last["tokens"] / max(1, self.last["total_tokens"])))

    @property
    def weights_K(self) -> Float64s:
        """The mixture as it stands, shape (K,): the answer at the end, before the first update the start."""
        if self.end is not None and self.end.get("weights"):
            return np.array([self.end["weights"][name] for name in self.sources])
        if self.updates:
            return self.updates[-1].weights_K
        num_sources = len(self.sources)
        return np.full(num_sources, 1 / max(1, num_sources))

    def trajectory(self) -> TrajectoryTable | None:
        """The trajectory so far, to six digits; None before the first update."""
        rows = self.updates
        if not rows:
            return None
        return TrajectoryTable(
            self.sources,
            self.targets,
            tokens_U=np.array([row.tokens for row in rows], np.float64),
            weights_UK=np.stack([row.weights_K for row in rows]),
            scores_UK=np.stack([row.scores_K for row in rows]),
            train_loss_U=np.array([row.train_loss for row in rows]),
            target_loss_U=np.array([row.target_loss for row in rows]),
            target_weights_UG=np.stack([row.target_weights_G for row in rows]),
            target_losses_UG=np.stack([row.target_losses_G for row in rows]),
        )


def read_progress(folder: SearchFolder) -> SearchProgress | None:
    """How far the search of a folder is; None where none has begun."""
    found = SearchProgress()
    for line in read_lines(folder.metrics):
        found.add(line)
    return found if found.begin is not None else None
