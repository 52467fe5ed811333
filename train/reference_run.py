"""The reference run: a proxy trained on a fixed mixture with the seed and budget of the search, whose losses targets are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastmix_data.artefacts import read_json, write_json
from fastmix_data.catalog import Catalog
from fastmix_data.errors import Interrupted
from fastmix_data.progress import progress
from fastmix_data.recipe import Recipe
from train.engine import ProxyEngine
from train.plain_run import train_on_mixture
from train.stated_mixtures import stated_weights
from train.target import Target
from train.target_balance import ReferenceLosses, measured_steps, num_measured_sequences


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


class _Recorder:
    """Measures the targets at the steps at which a search will."""

    def __init__(self, recipe: Recipe, target: Target, *, stop_asked: Callable[[], bool], advance: Callable[[int], None]) -> None:
        self._search, self._target = recipe.search, target
        self._stop_asked, self._advance = stop_asked, advance
        self.steps_S = measured_steps(recipe.search, num_targets=len(target.names))
        self.num_sequences = num_measured_sequences(recipe.search)
        self.losses_SG: list[list[float]] = []

    def after_step(self, step: int, engine: ProxyEngine) -> None:
        """Called on every rank; ends the run on all of them if any was asked to stop."""
        self._advance(self._search.tokens_per_step)
        if step % self._search.update_interval:
            return
        if engine.any_rank(self._stop_asked()):
            raise Interrupted(
                f"the reference run ended at step {step} of {self._search.num_steps}; the same command starts it again"
            )
        if step in self.steps_S:
            losses_G = self._target.evaluate_each(engine, half="search", num_sequences=self.num_sequences)
            self.losses_SG.append(losses_G.tolist())


def reference_run(
    recipe: Recipe,
    catalog: Catalog,
    *,
    target: Target,
    path: Path,
    identity: dict[str, Any],
    stop_asked: Callable[[], bool],
    quiet: bool,
) -> ReferenceRun:
    """The reference run that a recipe asks for: read from `path`, or trained on all ranks together and written there.

    Args:
        target: with fixed weights and the search's seed, so that both runs are measured on the same sequences.
        path: reference.json of the workdir.
        identity: what a run must share with the file to use it; one of another recipe is made anew.

    Raises:
        Interrupted: a stop was asked for.
        FastmixError: the loss is not finite.
    """
    saved = read_json(path) if path.exists() else {}
    if saved.get("identity") == identity:
        return ReferenceRun(ReferenceLosses(**saved["losses"]), saved["num_tokens"], saved["seconds"])
    run = _train(recipe, catalog, target, stop_asked=stop_asked, quiet=quiet)
    if torch.distributed.get_rank() == 0:
        names = {"mixture": recipe.target.reference_mixture, "targets": target.names}
        write_json(path, {"identity": identity, **names, **asdict(run)})
    return run


def _train(recipe: Recipe, catalog: Catalog, target: Target, *, stop_asked: Callable[[], bool], quiet: bool) -> ReferenceRun:
    search, started = recipe.search, time.monotonic()
    assert recipe.target.reference_mixture is not None
    weights_K = stated_weights(catalog, recipe.target.reference_mixture)
    total = search.num_steps * search.tokens_per_step
    with progress(f"reference run ({recipe.target.reference_mixture})", total=total, quiet=quiet) as advance:
        recorder = _Recorder(recipe, target, stop_asked=stop_asked, advance=advance)
        plain = train_on_mixture(recipe, catalog, weights_K, seed=search.seed, on_step=recorder.after_step)
    losses = ReferenceLosses(
        steps_S=recorder.steps_S,
        losses_SG=recorder.losses_SG,
        num_sequences=recorder.num_sequences,
        end_G=target.evaluate_each(plain.engine, half="search", num_sequences=search.eval_sequences).tolist(),
    )
    plain.engine.close()
    num_measured = len(losses.steps_S) * target.num_evaluated_tokens(losses.num_sequences)
    return ReferenceRun(losses, plain.num_tokens + num_measured, time.monotonic() - started)
