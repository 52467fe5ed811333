"""Tells what a search does while it runs: lines of metrics and sinks on the first rank, log messages on all.

Everything that is told has been reduced and brought to the host already, by the update of the mixture.
"""

from __future__ import annotations

import logging
import resource
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import torch

from fastmix_data.errors import Interrupted
from fastmix_data.loading.sinks import SinkKind
from fastmix_data.messages import first_line
from fastmix_data.recipe.search import SearchSection
from fastmix_data.results.metrics_file import Line, MetricsFile, keep_lines, read_lines
from fastmix_data.results.mixture import Mixture
from fastmix_data.results.trajectory import TrajectoryRow
from fastmix_data.workdir import SearchFolder
from train.proxy.engine import ProxyEngine
from train.proxy.training import ProxyPlan, learning_rate_at
from train.recording.model_flops import ModelFlops, own_device_name, peak_flops
from train.recording.rank_log import rank_log
from train.recording.search_sinks import SearchSinks

SCHEMA_VERSION = 1
_SECONDS_BETWEEN_LINES = 5.0  # of a stage that has no updates; those of the mixture have a line each
_SECONDS_BETWEEN_MESSAGES = 30.0  # to a rank's log, of how far it is
_REMEMBERED = 0.8  # of the rate before, in the one that the time left goes by
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """Where a search tells what it does, beside its metrics and a progress bar.

    Attributes:
        sinks: that get the same figures.
        logs: folder of a log for each rank; None for none.
    """

    sinks: tuple[SinkKind, ...] = ()
    logs: SearchFolder | None = None

    def rank_log(self, rank: int, *, world_size: int) -> AbstractContextManager[None]:
        """A block in which this rank's log is written."""
        path = self.logs.rank_log(rank) if self.logs is not None else None
        return rank_log(path, rank=rank, world_size=world_size)


class _Pace(NamedTuple):
    """When rates were told last, and how many tokens the search had trained on by then."""

    seconds: float
    tokens: int


class SearchRecorder:
    """One search's, on one rank; a context that notes how the search ended.

    A search that goes on keeps its lines up to the point at which it does, so that no step is told twice.
    """

    def __init__(
        self,
        folder: SearchFolder,
        *,
        proxy: ProxyPlan,
        made_from: Mapping[str, str],
        num_ranks: int,
        targets: Sequence[str],
        trial_steps: int,
        has_reference: bool,
        is_first: bool,
        sinks: Sequence[SinkKind] = (),
    ) -> None:
        """Prepare to tell; nothing is opened.

        Args:
            proxy: with the whole budget, trials included.
            made_from: what the search must share with the lines that lie there to go on with them; ranks may be another number.
            is_first: whether this rank tells the metrics.
        """
        self._folder, self._proxy, self._made_from, self._targets = folder, proxy, dict(made_from), list(targets)
        self._num_ranks = num_ranks
        training = proxy.training
        self._per_step = training.tokens_per_step
        of_trials = trial_steps * self._per_step
        self._stages = {
            "start": 0,
            "reference": training.num_tokens if has_reference else 0,
            "count": 0,
            "search": training.num_tokens - of_trials,
            "trials": of_trials,
        }
        self._stage, self._stage_tokens = "start", 0
        self._furthest: dict[str, int] = {}  # tokens of each stage, in the lines that lie there
        self._file = MetricsFile(folder.metrics) if is_first else None
        self._sinks = SearchSinks(sinks if is_first else (), folder=folder, per_step=self._per_step)
        self._flops: ModelFlops | None = None
        self._device = own_device_name()
        peak = peak_flops(self._device)
        self._peak = peak * num_ranks if peak else None
        self._pace = _Pace(time.monotonic(), 0)
        self._rate: float | None = None
        self._logged_at = 0.0

    def __enter__(self) -> SearchRecorder:
        """Begin, or go on with, the lines."""
        if self._file is not None:
            lines = read_lines(self._folder.metrics)
            first = next((line for line in lines if line["event"] == "begin"), None)
            if first is None or first.get("made_from") != self._made_from:
                first = None
                self._folder.metrics.unlink(missing_ok=True)
                shutil.rmtree(self._folder.tensorboard, ignore_errors=True)
            else:
                keep_lines(self._folder.metrics, lambda _: True)  # but for one that a crash tore
                for line in lines:
                    self._furthest[line["stage"]] = max(line["stage_tokens"], self._furthest.get(line["stage"], 0))
            run = first["run"] if first is not None else secrets.token_hex(4)
            self._sinks.run = run
            training = self._proxy.training
            self._tell(
                "begin",
                schema_version=SCHEMA_VERSION,
                run=run,
                made_from=self._made_from,
                sources=list(self._proxy.catalog.sources),
                targets=self._targets,
                seed=training.seed,
                num_ranks=self._num_ranks,
                device=self._device,
                tokens_per_step=self._per_step,
                num_steps=self._stages["search"] // self._per_step,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Note how it ended, where it did not finish."""
        if isinstance(error, Interrupted | KeyboardInterrupt):
            self._tell("end", outcome="stopped", message=first_line(error))
        elif error is not None:
            self._tell("end", outcome="failed", message=first_line(error))
        self._sinks.close()
        if self._file is not None:
            self._file.close()

    def enter(self, stage: str, *, done: int | None = None) -> None:
        """A stage begins, or goes on after `done` of its tokens; its lines beyond that are cut off.

        Args:
            done: None for a stage that is made anew whenever it is needed.
        """
        self._stage, self._stage_tokens = stage, done or 0
        if done is not None:
            self._sinks.go_on_after(self._tokens)
            if self._file is not None and self._furthest.pop(stage, 0) > done:
                self._file.close()
                keep_lines(self._folder.metrics, lambda line: line["stage"] != stage or line["stage_tokens"] <= done)
        self._pace = _Pace(time.monotonic(), self._tokens)
        _log.info("%s%s", stage, f", after {done:,} tokens of it" if done else "")
        self._tell("stage")

    def settle(self, stage: str, *, num_tokens: int) -> None:
        """A stage has ended after so many tokens, which may be fewer than were planned."""
        self._stages[stage] = num_tokens

    def describe_model(self, engine: ProxyEngine) -> None:
        """Take from an engine what utilisation is computed from."""
        if self._flops is None:
            self._flops = ModelFlops.of(
                self._proxy.config,
                num_parameters=engine.num_parameters,
                num_trained=engine.num_trained,
                sequence_length=self._proxy.training.sequence_length,
            )

    def update(self, row: TrajectoryRow, engine: ProxyEngine, *, search: SearchSection) -> None:
        """The mixture was moved."""
        training, sources = self._proxy.training.with_steps(self._stages["search"] // self._per_step), self._proxy.catalog.sources
        self._stage_tokens = row.tokens
        if time.monotonic() - self._logged_at >= _SECONDS_BETWEEN_MESSAGES:
            self._logged_at = time.monotonic()
            _log.info("step %d: train %.4f, target %.4f", row.step, row.train_loss, row.target_loss)
        if self._file is None:
            return
        num_steps = (self._tokens - self._pace.tokens) // self._per_step
        flops = self._flops.of_updates(training, search, num_steps=num_steps) if self._flops is not None else None
        self._tell(
            "update",
            step=row.step,
            train_loss=_short(row.train_loss),
            target_loss=_short(row.target_loss),
            target_losses=_by_name(self._targets, row.target_losses),
            target_weights=_by_name(self._targets, row.target_weights),
            weights=_by_name(sources, row.weights),
            scores=_by_name(sources, row.scores),
            learning_rate=_short(learning_rate_at(row.step - 1, training)),
            gradient_norm=_short(engine.gradient_norm),
            **self._rates(flops),
        )

    def trained(self, num_tokens: int) -> None:
        """So many tokens of the stage are trained on; told now and then, in stages that have no updates."""
        self._stage_tokens = num_tokens
        if self._file is not None and time.monotonic() - self._pace.seconds >= _SECONDS_BETWEEN_LINES:
            self._tell("progress", **self._rates(self._flops_of_training()))

    def measured(self, step: int, losses_G: Sequence[float]) -> None:
        """The reference run was measured on each target."""
        self._stage_tokens = step * self._per_step
        if self._file is not None:
            self._tell(
                "reference",
                step=step,
                target_losses=_by_name(self._targets, losses_G),
                **self._rates(self._flops_of_training()),
            )

    def tried(
        self, candidate: str, *, round: int, num_steps: int, loss: float, num_tokens: int, probability: Mapping[str, float] | None
    ) -> None:
        """A trial was measured.

        Args:
            num_tokens: of all trials so far.
            probability: that each mixture is the best, as far as trials tell.
        """
        _log.info("trial of %s, round %d, %d steps: target %.4f", candidate, round, num_steps, loss)
        # Of trials that were made at once, the first one's line has the rates of all.
        rates = self._rates(self._flops_of_training())
        self._stage_tokens = num_tokens
        if self._file is not None:
            likely = {name: _short(value) for name, value in probability.items()} if probability is not None else None
            self._tell(
                "trial",
                candidate=candidate,
                round=round,
                num_steps=num_steps,
                loss=_short(loss),
                probability=likely,
                **rates,
            )

    def finished(self, mixture: Mixture) -> None:
        """The result is written."""
        why, winner = mixture.search.stopped, mixture.trials.winner if mixture.trials is not None else None
        self._stages[self._stage] = self._stage_tokens
        _log.info("finished: %s", why)
        weights = {name: _short(weight) for name, weight in mixture.weights.items()}
        self._tell("end", outcome="finished", message=why, winner=winner, weights=weights)

    def _before(self, stage: str) -> int:
        """Tokens of the stages before one."""
        names = list(self._stages)
        return sum(self._stages[name] for name in names[: names.index(stage)])

    @property
    def _tokens(self) -> int:
        """Trained on by the search so far, in all stages."""
        return self._before(self._stage) + self._stage_tokens

    def _flops_of_training(self) -> float | None:
        return self._flops.training * (self._tokens - self._pace.tokens) if self._flops is not None else None

    def _rates(self, flops: float | None) -> Line:
        """What was made of the time since the last line that has rates; null where there was none."""
        now, tokens = time.monotonic(), self._tokens
        seconds, num_tokens = now - self._pace.seconds, tokens - self._pace.tokens
        if num_tokens <= 0:
            return dict.fromkeys(("tokens_per_second", "mfu", "seconds_left", "peak_memory_bytes"))
        self._pace = _Pace(now, tokens)
        rate = num_tokens / max(seconds, 1e-9)
        self._rate = rate if self._rate is None else _REMEMBERED * self._rate + (1 - _REMEMBERED) * rate
        left = (sum(self._stages.values()) - tokens) / self._rate
        utilisation = flops / max(seconds, 1e-9) / self._peak if flops is not None and self._peak else None
        return {
            "tokens_per_second": _short(rate),
            "mfu": _short(utilisation),
            "seconds_left": round(max(0.0, left), 1),
            "peak_memory_bytes": _peak_memory_bytes(),
        }

    def _tell(self, event: str, **figures: Any) -> None:
        if self._file is None:
            return
        line = {
            "event": event,
            "time": round(time.time(), 3),
            "stage": self._stage,
            "tokens": self._tokens,
            "total_tokens": sum(self._stages.values()),
            "stage_tokens": self._stage_tokens,
            **figures,
        }
        self._file.append(line)
        if self._sinks(line):
            self._pace = self._pace._replace(seconds=time.monotonic())


def _short(value: float | None) -> float | None:
    """Six digits, which are enough to look at; the trajectory has all of them."""
    return float(f"{value:.6g}") if value is not None else None


def _by_name(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
    return {name: _short(value) for name, value in zip(names, values, strict=True)}


def _peak_memory_bytes() -> int:
    """Of this rank: the GPU's as torch allocates it, or all of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
