"""The reference run: a proxy trained on a fixed mixture with the seed and budget of the search, whose losses targets are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import Interrupted
from fastmix_data.progress import progress
from fastmix_data.recipe.search import SearchSection
from train.mixture.named_mixtures import stated_weights
from train.proxy.engine import ProxyEngine, any_rank
from train.proxy.training import ProxyPlan, train_on_mixture
from train.recording.search_recorder import SearchRecorder
from train.target.target import Target
from train.target.target_weights import ReferenceLosses, measured_steps, num_measured_sequences


@dataclass(frozen=True)
class ReferenceRun:
    """Losses of the reference run, and what it cost.

    Attributes:
        num_tokens: trained on, and read to measure the targets on the way.
        seconds: of the whole run.
    """

    losses: ReferenceLosses
    num_tokens: int
    seconds: float


class _Measuring:
    """Measures the targets at the steps at which a search will."""

    def __init__(
        self,
        plan: ProxyPlan,
        search: SearchSection,
        target: Target,
        *,
        stop_asked: Callable[[], bool],
        advance: Callable[[int], None],
        recorder: SearchRecorder | None,
    ) -> None:
        self._recorder = recorder
        self._training, self._interval, self._target = plan.training, search.update_interval, target
        self._stop_asked, self._advance = stop_asked, advance
        self.steps_S = measured_steps(search, plan.training, num_targets=len(target.names))
        self.num_sequences = num_measured_sequences(search)
        self.losses_SG: list[list[float]] = []

    def after_step(self, step: int, engine: ProxyEngine) -> None:
        """Called on every rank; ends the run on all of them if any was asked to stop."""
        self._advance(self._training.tokens_per_step)
        if step % self._interval:
            return
        if self._recorder is not None:
            self._recorder.describe_model(engine)
            self._recorder.trained(step * self._training.tokens_per_step)
        if any_rank(self._stop_asked()):
            ended = f"the reference run ended at step {step} of {self._training.num_steps}"
            raise Interrupted("", ended, "the same command starts it again")
        if step in self.steps_S:
            losses_G = self._target.evaluate_each(engine, half="search", num_sequences=self.num_sequences)
            self.losses_SG.append(losses_G.tolist())
            if self._recorder is not None:
                self._recorder.measured(step, losses_G.tolist())


def reference_run(
    plan: ProxyPlan,
    search: SearchSection,
    *,
    mixture: Literal["uniform", "proportional"],
    target: Target,
    path: Path,
    identity: dict[str, Any],
    stop_asked: Callable[[], bool],
    quiet: bool,
    recorder: SearchRecorder | None = None,
) -> ReferenceRun:
    """The reference run that a recipe asks for: read from `path`, or trained on all ranks together and written there.

    Args:
        plan: of the search's proxy, whose seed and budget the run has too.
        target: with fixed weights and the search's seed, so that both runs are measured on the same sequences.
        path: where it is kept.
        recorder: tells of it, if given.
        identity: what a run must share with the file to use it; one of another recipe is made anew.

    Raises:
        Interrupted: a stop was asked for.
        FastmixError: the loss is not finite.
    """
    saved = read_json(path) if path.exists() else {}
    if saved.get("identity") == identity:
        return ReferenceRun(ReferenceLosses(**saved["losses"]), saved["num_tokens"], saved["seconds"])
    if recorder is not None:
        recorder.enter("reference", done=0)
    started, weights_K = time.monotonic(), stated_weights(plan.catalog, mixture, unit=search.weight_unit)
    with progress(f"reference run ({mixture})", total=plan.training.num_tokens, quiet=quiet) as advance:
        measuring = _Measuring(plan, search, target, stop_asked=stop_asked, advance=advance, recorder=recorder)
        engine = train_on_mixture(plan, weights_K, seed=plan.training.seed, on_step=measuring.after_step).engine
    losses = ReferenceLosses(
        steps_S=measuring.steps_S,
        losses_SG=measuring.losses_SG,
        num_sequences=measuring.num_sequences,
        end_G=target.evaluate_each(engine, half="search", num_sequences=search.eval_sequences).tolist(),
    )
    is_first = engine.rank == 0
    engine.close()
    num_measured = len(losses.steps_S) * target.num_evaluated_tokens(losses.num_sequences)
    run = ReferenceRun(losses, plan.training.num_tokens + num_measured, time.monotonic() - started)
    if is_first:
        write_json(path, {"identity": identity, "mixture": mixture, "targets": target.names, **asdict(run)})
    return run
