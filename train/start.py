"""Where a search starts: the mixture that is best by counts, or its cube where short trials of both say so.

Counts know what the sources share with the target, but not how far a proxy that learns less from a token than they do should concentrate
on it. The scores of a search cannot tell either: they say what a step changes now, and a mixture on which another proxy would have
ended lower may look worse at every step. So proxies are trained from scratch on both, in pairs of one seed, and the lower mean loss
on the search's half of the target decides. Many short trials decide better than a few long ones: what one run learns early is chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from fastmix_data.artefacts import read_json, write_json
from fastmix_data.catalog import Catalog
from fastmix_data.errors import Interrupted
from fastmix_data.permutation import derive_keys
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe import NUM_TRIALS, Recipe
from fastmix_data.sampler import Float64s
from train.constraints import constraints_of
from train.engine import ProxyEngine
from train.plain_run import train_on_mixture
from train.stated_mixtures import at_least_a_thousandth, start_and_prior
from train.target import Target
from train.target_balance import num_measured_sequences

_POWERS = (1, 3)
_TRIAL_STREAM = 43


@dataclass(frozen=True)
class Start:
    """Where a search starts and what it is pulled to, and how that was found. JSON-able.

    Attributes:
        initial, prior: weights in the order of the catalog's sources.
        counted: the stated start, of which the trials raise a power.
        trial_losses: losses on the target in nats, by power, in the order of the seeds; empty without trials.
        num_tokens: trained on, and read to measure the target.
        seconds: of counting and trials.
    """

    initial: list[float]
    prior: list[float]
    counted: list[float]
    trial_losses: dict[str, list[float]] = field(default_factory=dict)
    num_tokens: int = 0
    seconds: float = 0.0

    @property
    def num_trials(self) -> int:
        """Trials that are done."""
        return sum(map(len, self.trial_losses.values()))

    @property
    def power(self) -> int:
        """That of the mixture with the lower mean loss; 1 without trials."""
        means = {power: np.mean(losses) for power, losses in self.trial_losses.items() if losses}
        return int(min(means, key=lambda power: means[power])) if means else _POWERS[0]


def to_the_power(weights_K: Float64s, power: float) -> Float64s:
    """A mixture more concentrated (power above 1) or less, normalised, none below a thousandth of the uniform share, shape (K,).

    >>> to_the_power(np.array([0.6, 0.3, 0.1]), 2).round(2).tolist()
    [0.78, 0.2, 0.02]
    """
    raised_K = weights_K**power
    return at_least_a_thousandth(raised_K / raised_K.sum())


def find_start(
    recipe: Recipe,
    catalog: Catalog,
    *,
    target: Target,
    path: Path,
    identity: dict[str, Any],
    stop_asked: Callable[[], bool],
    quiet: bool,
) -> Start:
    """The recipe's start, counted and tried on all ranks together; trials that are in `path` are not made again.

    Args:
        target: with fixed weights, so that all trials are measured on the same sequences.
        path: start.json of the search; written after each trial.
        identity: what a run must share with the file to use it; one of another recipe is made anew.

    Raises:
        InputError: a source or target is smaller than one sequence.
        Interrupted: a stop was asked for.
        FastmixError: the loss is not finite.
    """
    start = _from_first_rank(lambda: _saved(path, identity) or stated_start(recipe, catalog))
    if not recipe.trial_steps:
        _save(path, identity, start)
        return start
    trial = recipe.trial
    num_tokens = trial.search.num_steps * trial.search.tokens_per_step
    done = start.num_trials
    with progress("trials of the start", total=NUM_TRIALS * num_tokens, done=done * num_tokens, quiet=quiet) as advance:
        for number in range(done, NUM_TRIALS):
            round_number, power = number // len(_POWERS), _POWERS[number % len(_POWERS)]
            stop = _StopBetweenSteps(trial, stop_asked, advance, done=number)
            loss, seconds = _try(trial, catalog, start, power=power, round_number=round_number, target=target, after_step=stop)
            measured = target.num_evaluated_tokens(num_measured_sequences(trial.search))
            losses = start.trial_losses | {str(power): [*start.trial_losses.get(str(power), []), loss]}
            start = replace(
                start, trial_losses=losses, num_tokens=start.num_tokens + num_tokens + measured, seconds=start.seconds + seconds
            )
            if number == NUM_TRIALS - 1:
                start = _decided(start, follow=recipe.search.prior is None)
            _save(path, identity, start)
    return start


class _StopBetweenSteps:
    """Moves the progress bar, and ends a trial on all ranks if any was asked to stop."""

    def __init__(self, trial: Recipe, stop_asked: Callable[[], bool], advance: Advance, *, done: int) -> None:
        self._search, self._stop_asked, self._advance, self._done = trial.search, stop_asked, advance, done

    def __call__(self, step: int, engine: ProxyEngine) -> None:
        self._advance(self._search.tokens_per_step)
        if step % self._search.update_interval:
            return
        if engine.any_rank(self._stop_asked()):
            raise Interrupted(
                f"{self._done} of {NUM_TRIALS} trials of the search's start are saved; the same command goes on from there"
            )


def _try(
    trial: Recipe,
    catalog: Catalog,
    start: Start,
    *,
    power: int,
    round_number: int,
    target: Target,
    after_step: Callable[[int, ProxyEngine], None],
) -> tuple[float, float]:
    """Loss of a fresh proxy on the search's half of the target, and the seconds it took."""
    started = time.monotonic()
    weights_K = constraints_of(trial, catalog).project(to_the_power(np.array(start.counted), power))
    seed = int(derive_keys(trial.search.seed, _TRIAL_STREAM, round_number)[0] >> np.uint64(33))
    engine = train_on_mixture(trial, catalog, weights_K, seed=seed, on_step=after_step).engine
    losses_G = target.evaluate_each(engine, half="search", num_sequences=num_measured_sequences(trial.search))
    engine.close()
    return float(target.weights_G @ losses_G), time.monotonic() - started


def _decided(start: Start, *, follow: bool) -> Start:
    """With the mixture that the trials chose; the prior is the same where the recipe states none."""
    initial = to_the_power(np.array(start.counted), start.power).tolist() if start.power != 1 else start.counted
    return replace(start, initial=initial, prior=initial if follow else start.prior)


def stated_start(recipe: Recipe, catalog: Catalog) -> Start:
    """The recipe's start without trials.

    Raises:
        InputError: a source or target is smaller than one sequence.
    """
    started = time.monotonic()
    initial_K, prior_K = start_and_prior(recipe, catalog)
    return Start(initial_K.tolist(), prior_K.tolist(), counted=initial_K.tolist(), seconds=time.monotonic() - started)


def _saved(path: Path, identity: dict[str, Any]) -> Start | None:
    saved = read_json(path) if path.exists() else {}
    if saved.pop("identity", None) != identity:
        return None
    return Start(**saved)


def _save(path: Path, identity: dict[str, Any], start: Start) -> None:
    if dist.get_rank() == 0:
        write_json(path, {"identity": identity, **asdict(start)})


def _from_first_rank(make: Callable[[], Start]) -> Start:
    """What the first rank makes, on all of them: machines may differ in the last digit of a sum.

    An error there is raised everywhere, so that no rank waits for one that has left.
    """
    made: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[0] = error
    dist.broadcast_object_list(made, src=0)
    if isinstance(made[0], Exception):
        raise made[0]
    found: Start = made[0]
    return found
