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
from train.checkpoints.checkpoints import CheckpointPlan
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
        self._last_step: int | None = None
        self._started, self._seconds_before = time.monotonic(), 0.0

    def after_step(self, step: int, engine: ProxyEngine) -> None:
        """Called on every rank; ends the run on all of them if any was asked to stop."""
        per_step = self._training.tokens_per_step
        if self._recorder is not None and self._last_step is None:  # an earlier call may have made the steps before
            self._recorder.enter("reference", done=(step - 1) * per_step)
        self._advance((step - (self._last_step or 0)) * per_step)
        self._last_step = step
        if step % self._interval:
            return
        if self._recorder is not None:
            self._recorder.describe_model(engine)
            self._recorder.trained(step * per_step)
        if step in self.steps_S:
            losses_G = self._target.evaluate_each(engine, half="search", num_sequences=self.num_sequences)
            self.losses_SG.append(losses_G.tolist())
            if self._recorder is not None:
                self._recorder.measured(step, losses_G.tolist())
        if any_rank(self._stop_asked()):
            saved = f"the reference run is saved at step {step} of {self._training.num_steps}"
            raise Interrupted("", saved, "the same command goes on from there")

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far, and how long all of it took."""
        return {"losses": self.losses_SG, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.losses_SG, self._seconds_before = state["losses"], state["seconds"]

    @property
    def seconds(self) -> float:
        """Of the whole run, in all calls."""
        return self._seconds_before + time.monotonic() - self._started


def reference_run(
    plan: ProxyPlan,
    search: SearchSection,
    *,
    mixture: Literal["uniform", "proportional"],
    target: Target,
    path: Path,
    kept: CheckpointPlan,
    stop_asked: Callable[[], bool],
    quiet: bool,
    recorder: SearchRecorder | None = None,
) -> ReferenceRun:
    """The reference run that a recipe asks for: read from `path`, or trained on all ranks together and written there.

    Args:
        plan: of the search's proxy, whose seed and budget the run has too.
        target: with fixed weights and the search's seed, so that both runs are measured on the same sequences.
        path: where its losses are kept.
        kept: where it is saved while it is trained. Losses of another identity than this are made anew.
        recorder: tells of it, if given.

    Raises:
        Interrupted: a stop was asked for.
        FastmixError: the loss is not finite.
    """
    kept = kept.of(reference=mixture)
    saved = read_json(path) if path.exists() else {}
    if saved.get("identity") == kept.identity:
        return ReferenceRun(ReferenceLosses(**saved["losses"]), saved["num_tokens"], saved["seconds"])
    weights_K = stated_weights(plan.catalog, mixture, unit=search.weight_unit)
    with progress(f"reference run ({mixture})", total=plan.training.num_tokens, quiet=quiet) as advance:
        measuring = _Measuring(plan, search, target, stop_asked=stop_asked, advance=advance, recorder=recorder)
        engine = train_on_mixture(
            plan, weights_K, seed=plan.training.seed, on_step=measuring.after_step, kept=kept, carried=measuring
        ).engine
    losses = ReferenceLosses(
        steps_S=measuring.steps_S,
        losses_SG=measuring.losses_SG,
        num_sequences=measuring.num_sequences,
        end_G=target.evaluate_each(engine, half="search", num_sequences=search.eval_sequences).tolist(),
    )
    is_first = engine.rank == 0
    engine.close()
    num_measured = len(losses.steps_S) * target.num_evaluated_tokens(losses.num_sequences)
    run = ReferenceRun(losses, plan.training.num_tokens + num_measured, measuring.seconds)
    if is_first:
        write_json(path, {"identity": kept.identity, "mixture": mixture, "targets": target.names, **asdict(run)})
        kept.discard()
    return run
