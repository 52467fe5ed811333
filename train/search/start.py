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
from typing import Any

import numpy as np
import torch.distributed as dist

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import Interrupted
from fastmix_data.permutation import derive_keys
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe.search import NUM_TRIALS
from train.mixture.bigram import count_bigrams
from train.mixture.named_mixtures import start_and_prior
from train.proxy.engine import ProxyEngine
from train.proxy.training import ProxyPlan, train_on_mixture
from train.search.other_documents import document_widths
from train.search.plan import SearchPlan
from train.target.target import Target
from train.target.target_weights import num_measured_sequences

_POWERS = (1, 3)
_TRIAL_STREAM = 43


@dataclass(frozen=True)
class Start:
    """Where a search starts and what it is pulled to, and how that was found. JSON-able.

    Attributes:
        initial, prior: weights in the order of the catalog's sources.
        counted: the stated start, of which the trials raise a power.
        trial_losses: losses on the target in nats, by power, in the order of the seeds; empty without trials.
        document_widths: how far other documents of the target would move the answer, by power; see `other_documents`.
        num_tokens: trained on, and read to measure the target.
        seconds: of counting and trials.
    """

    initial: list[float]
    prior: list[float]
    counted: list[float]
    document_widths: dict[str, list[float]]
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

    @property
    def document_width_K(self) -> Float64s:
        """That of the power which was chosen, shape (K,)."""
        return np.array(self.document_widths[str(self.power)])


def find_start(
    plan: SearchPlan, *, target: Target, identity: dict[str, Any], stop_asked: Callable[[], bool], quiet: bool
) -> Start:
    """The search's start, counted and tried on all ranks together; trials that are kept in its folder are not made again.

    Args:
        target: with fixed weights, so that all trials are measured on the same sequences.
        identity: what a run must share with the kept ones to use them; those of another recipe are made anew.

    Raises:
        InputError: a source or target is smaller than one sequence.
        Interrupted: a stop was asked for.
        FastmixError: the loss is not finite.
    """
    start = _from_first_rank(lambda: _saved(plan, identity) or stated_start(plan))
    trial = plan.trial
    if trial is None:
        _save(plan, identity, start)
        return start
    num_tokens, measured_sequences = trial.training.num_tokens, num_measured_sequences(plan.search)
    cost = num_tokens + target.num_evaluated_tokens(measured_sequences)
    done = start.num_trials
    with progress("trials of the start", total=NUM_TRIALS * num_tokens, done=done * num_tokens, quiet=quiet) as advance:
        for number in range(done, NUM_TRIALS):
            started = time.monotonic()
            # The two powers in turn, so that both trials of a pair share a seed and a stopped search has whole pairs but for one.
            pair, power = number // len(_POWERS), _POWERS[number % len(_POWERS)]
            weights_K = plan.constraints.concentrated(np.array(start.counted), power)
            stop = _StopBetweenSteps(trial, stop_asked, advance, interval=plan.search.update_interval, done=number)
            loss = _trial_loss(trial, weights_K, pair=pair, target=target, num_sequences=measured_sequences, after_step=stop)
            losses = start.trial_losses | {str(power): [*start.trial_losses.get(str(power), []), loss]}
            seconds = start.seconds + time.monotonic() - started
            start = replace(start, trial_losses=losses, num_tokens=start.num_tokens + cost, seconds=seconds)
            if number == NUM_TRIALS - 1:
                start = _decided(start, plan)
            _save(plan, identity, start)
    return start


class _StopBetweenSteps:
    """Moves the progress bar, and ends a trial on all ranks if any was asked to stop."""

    def __init__(self, trial: ProxyPlan, stop_asked: Callable[[], bool], advance: Advance, *, interval: int, done: int) -> None:
        self._per_step, self._stop_asked, self._advance = trial.training.tokens_per_step, stop_asked, advance
        self._interval, self._done = interval, done

    def __call__(self, step: int, engine: ProxyEngine) -> None:
        self._advance(self._per_step)
        if step % self._interval == 0 and engine.any_rank(self._stop_asked()):
            saved = f"{self._done} of {NUM_TRIALS} trials of the search's start are saved"
            raise Interrupted("", saved, "the same command goes on from there")


def _trial_loss(
    trial: ProxyPlan,
    weights_K: Float64s,
    *,
    pair: int,
    target: Target,
    num_sequences: int,
    after_step: Callable[[int, ProxyEngine], None],
) -> float:
    """Loss of a fresh proxy on the search's half of the target."""
    seed = int(derive_keys(trial.training.seed, _TRIAL_STREAM, pair)[0] >> np.uint64(33))
    engine = train_on_mixture(trial, weights_K, seed=seed, on_step=after_step).engine
    losses_G = target.evaluate_each(engine, half="search", num_sequences=num_sequences)
    engine.close()
    return float(target.weights_G @ losses_G)


def _decided(start: Start, plan: SearchPlan) -> Start:
    """With the mixture that the trials chose; the prior is the same where the recipe states none."""
    initial = start.counted
    if start.power != 1:
        initial = plan.constraints.concentrated(np.array(start.counted), start.power).tolist()
    return replace(start, initial=initial, prior=initial if plan.search.prior is None else start.prior)


def stated_start(plan: SearchPlan) -> Start:
    """The recipe's start without trials, and how much of it is the choice of the target's documents.

    Raises:
        InputError: a source or target is smaller than one sequence.
    """
    started = time.monotonic()
    targets = plan.target.weights()
    counts = count_bigrams(plan.proxy, targets)
    initial_K, prior_K = start_and_prior(plan.search, plan.proxy, targets, constraints=plan.constraints, counts=counts)
    widths = document_widths(
        counts,
        num_tokens=plan.proxy.training.token_budget,
        powers=_POWERS if plan.trial is not None else _POWERS[:1],
        constraints=plan.constraints,
    )
    return Start(
        initial_K.tolist(), prior_K.tolist(), initial_K.tolist(), document_widths=widths, seconds=time.monotonic() - started
    )


def _saved(plan: SearchPlan, identity: dict[str, Any]) -> Start | None:
    saved = read_json(plan.folder.start) if plan.folder.start.exists() else {}
    if saved.pop("identity", None) != identity or "document_widths" not in saved:  # of another search, or of an earlier version
        return None
    return Start(**saved)


def _save(plan: SearchPlan, identity: dict[str, Any], start: Start) -> None:
    if dist.get_rank() == 0:
        write_json(plan.folder.start, {"identity": identity, **asdict(start)})


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
