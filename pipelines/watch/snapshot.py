"""A search at one moment: what `fastmix watch` shows, as JSON and as lines of text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from textwrap import indent
from typing import Any

import numpy as np

from fastmix_data.results.metrics_file import Line
from fastmix_data.results.mixture import TRIED
from fastmix_data.results.search_progress import STAGES, SearchProgress
from fastmix_data.text_table import aligned
from fastmix_data.units import format_count
from fastmix_data.workdir import SearchFolder
from pipelines.report.format import duration
from pipelines.watch.bars import bar

_SILENT = 120.0  # seconds without a line after which a search that should be running is doubted
_RECENT = 10  # part of the updates so far over which the mixture's movement is shown


@dataclass(frozen=True)
class Standing:
    """How a mixture does in trials.

    Attributes:
        losses: of its trials in their order.
        num_steps: of the last one; losses after other numbers of steps cannot be compared.
        probability: that it is the best; None where trials do not tell yet.
    """

    name: str
    losses: tuple[float, ...]
    num_steps: int
    probability: float | None


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment.

    Attributes:
        folder: of the search, or of that of several which was written to last.
        now: seconds since the epoch.
        is_done: whether nothing more will come.
    """

    folder: SearchFolder
    progress: SearchProgress
    now: float
    is_done: bool

    @property
    def title(self) -> str:
        """Which search it is."""
        name = self.folder.root.name
        workdir = self.folder.root.parent if name == "search" else self.folder.root.parent.parent
        return str(workdir) if name == "search" else f"{workdir}, {name.replace('-', ' ')}"

    @cached_property
    def status(self) -> str:
        """Stage or end, in a sentence."""
        progress, done = self.progress, f"{self.progress.share_done:.0%}"
        if self.is_done and progress.end is None:
            return f"finished: {self.folder.mixture} is there"
        if progress.state == "waiting":
            return f"no search has begun here yet; waiting for {self.folder.metrics}"
        if progress.state == "finished":
            end = progress.end or {}
            chose = f"trials chose {TRIED.get(end['winner'], end['winner'])}; " if end.get("winner") else ""
            return f"finished: {chose}{end['message']}"
        if progress.state != "running":
            return f"{progress.state} at {done}: {progress.end['message'] if progress.end else ''}"
        text = f"{STAGES.get(progress.stage, progress.stage)}, {done} done"
        silent = self.seconds_silent
        return f"{text}; nothing heard for {duration(silent)}: is it still running?" if silent > _SILENT else text

    @property
    def seconds_silent(self) -> float:
        """Since the newest line."""
        return self.now - self.progress.last["time"] if self.progress.last is not None else 0.0

    @property
    def is_running(self) -> bool:
        """Whether it does not say that it has ended."""
        return self.progress.state == "running"

    @property
    def seconds_left(self) -> float | None:
        """By the newest line that says so; the search may end sooner, if its mixture stands still."""
        left = self.progress.rates.get("seconds_left")
        return max(0.0, left - (self.now - self.progress.rates["time"])) if left is not None and self.is_running else None

    @cached_property
    def facts(self) -> list[str]:
        """Figures of the moment."""
        progress, rates = self.progress, self.progress.rates
        begin, last = progress.begin, progress.last
        if begin is None or last is None:
            return []
        found = [f"step {progress.updates[-1].step} of {begin['num_steps']}"] if progress.updates else []
        if progress.trials:
            found = [f"{len(progress.trials)} trial{'s' if len(progress.trials) > 1 else ''}"]
        found.append(f"{format_count(last['tokens'])} of {format_count(last['total_tokens'])} tokens")
        if rates:
            found.append(f"{format_count(rates['tokens_per_second'])} tok/s")
        if rates.get("mfu") is not None:
            found.append(f"MFU {rates['mfu']:.0%}")
        if self.seconds_left is not None:
            found.append(f"{duration(self.seconds_left)} left")
        found.append(f"{begin['num_ranks']} rank{'s' if begin['num_ranks'] > 1 else ''}")
        if rates:
            found.append(f"{rates['peak_memory_bytes'] / 2**30:.1f} GiB")
        return found

    @cached_property
    def shares(self) -> list[tuple[str, float, float]]:
        """Name, share and how far it has moved of late, of each source by falling share; an answer does not move."""
        weights_K, updates = self.progress.weights_K, self.progress.updates if self.is_running else []
        before_K = updates[-min(len(updates), 1 + len(updates) // _RECENT)].weights_K if updates else weights_K
        order = np.argsort(-weights_K, kind="stable").tolist()
        names = self.progress.sources
        return [(names[k], float(weights_K[k]), float(weights_K[k] - before_K[k])) for k in order]

    @cached_property
    def losses(self) -> dict[str, list[float]]:
        """Losses over the updates, of training and of the target or, where there are several, of each."""
        updates, targets = self.progress.updates, self.progress.targets
        found = {"train": [row.train_loss for row in updates]} if updates else {}
        if updates and len(targets) == 1:
            found[f"target {targets[0]}"] = [row.target_loss for row in updates]
        elif updates:
            found["target"] = [row.target_loss for row in updates]
            found |= {f"  {name}": [float(row.target_losses_G[g]) for row in updates] for g, name in enumerate(targets)}
        return found

    @cached_property
    def standings(self) -> list[Standing]:
        """Mixtures in the trials, the likeliest best first."""
        trials = self.progress.trials
        likely: dict[str, float] = next((line["probability"] for line in reversed(trials) if line["probability"]), {})
        by_name: dict[str, list[Line]] = {}
        for line in trials:
            by_name.setdefault(line["candidate"], []).append(line)
        found = [
            Standing(TRIED.get(name, name), tuple(line["loss"] for line in of), of[-1]["num_steps"], likely.get(name))
            for name, of in by_name.items()
        ]
        return sorted(found, key=lambda one: (-(one.probability or 0.0), sum(one.losses) / len(one.losses)))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        progress, rates = self.progress, self.progress.rates
        return {
            "search": str(self.folder.root),
            "state": progress.state,
            "stage": progress.stage if progress.begin is not None else None,
            "share_done": progress.share_done,
            "step": progress.updates[-1].step if progress.updates else 0,
            "num_steps": progress.begin["num_steps"] if progress.begin is not None else None,
            "tokens": progress.last["tokens"] if progress.last is not None else 0,
            "tokens_per_second": rates.get("tokens_per_second"),
            "mfu": rates.get("mfu"),
            "seconds_left": self.seconds_left,
            "seconds_silent": round(self.seconds_silent, 1),
            "weights": {name: share for name, share, _ in self.shares},
            "losses": {name.strip(): values[-1] for name, values in self.losses.items()},
            "trials": {one.name: {"losses": list(one.losses), "probability": one.probability} for one in self.standings},
            "message": self.status,
        }

    def text(self) -> str:
        """All of it as lines, for a terminal or a file."""
        rows = [[name, f"{100 * share:6.2f}%", bar(share / self.shares[0][1], width=24)] for name, share, _ in self.shares]
        parts = [self.title, self.status, ", ".join(self.facts)]
        if self.progress.updates:
            parts += ["mixture:", indent(aligned(rows, flush_left=(0, 1, 2)), "  ")]
            parts.append(f"losses: {self._last_losses()}")
        for one in self.standings:
            likely = "" if one.probability is None else f", the best with a probability of {one.probability:.0%}"
            parts.append(f"trials of {one.name}: {', '.join(f'{loss:.3f}' for loss in one.losses)}{likely}")
        return "\n".join(part for part in parts if part)

    def line(self) -> str:
        """One line, for a log."""
        mixture = ", ".join(f"{name} {share:.1%}" for name, share, _ in self.shares[:3])
        return "; ".join(
            part
            for part in [self.status, *self.facts, self._last_losses(most=2), mixture if self.progress.updates else ""]
            if part
        )

    def _last_losses(self, *, most: int | None = None) -> str:
        """Names and numbers; a target that was in no batch yet has none."""
        known = [(name.strip(), values[-1]) for name, values in self.losses.items() if isfinite(values[-1])]
        return ", ".join(f"{name} {loss:.3f}" for name, loss in known[:most])
