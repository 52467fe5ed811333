"""Short proxies that sample the mixtures proposed, in pairs of one seed, until it is clear which one is best.

Scores and counts say what helps a step or a table of pairs. What is asked for is the mixture on which a model trained from scratch ends
lowest, and only training tells. Every round trains a proxy on each mixture that is still in the race, from one seed, and measures it on
target sequences that no other round reads. Mixtures that cannot win any more are dropped, and rounds grow longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch.distributed as dist

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import Interrupted
from fastmix_data.permutation import derive_keys
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe.search import FEWEST_TRIAL_STEPS
from train.proxy.engine import any_rank
from train.recording.search_recorder import SearchRecorder
from train.search.plan import SearchPlan
from train.target.target import Target
from train.trials.round_losses import Measured, TrialRunner
from train.trials.verdict import Trial, Verdict, judge

_TRIAL_STREAM = 43
_FIRST_ROUNDS = 2  # of the shortest length, and with every mixture: one pair says nothing of the noise
_SHORTEST_SHARE = 6  # a first trial is such a part of the steps that all mixtures have on average
_HOPELESS = 0.05  # probability of being the best
_MEASURED_SHARE, _FEWEST_MEASURED = 4, 8  # a trial reads a quarter of its tokens of the target, or 8 sequences of each


@dataclass(frozen=True)
class Trials:
    """What was tried so far. JSON-able.

    Attributes:
        candidates: the mixtures by name, in the order of the catalog's sources; the first is the start.
        done: in the order they were made.
        num_tokens: trained on, and read to measure the target.
        seconds: of all trials.
    """

    candidates: dict[str, list[float]]
    done: list[Trial] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0

    def after(self, trial: Trial, *, num_tokens: int, seconds: float) -> Trials:
        """With one trial more."""
        return replace(self, done=[*self.done, trial], num_tokens=self.num_tokens + num_tokens, seconds=self.seconds + seconds)

    def verdict(self, *, horizon_steps: int) -> Verdict | None:
        """What they say; None before two whole rounds."""
        rounds = {trial.round for trial in self.done}
        return (
            judge(self.done, names=list(self.candidates), horizon_steps=horizon_steps) if len(rounds) >= _FIRST_ROUNDS else None
        )


@dataclass(frozen=True)
class Round:
    """The trials to come: of each of these mixtures, one of so many steps."""

    number: int
    num_steps: int
    names: tuple[str, ...]


def next_round(trials: Trials, *, budget_steps: int, horizon_steps: int) -> Round | None:
    """The round that is to be made, or finished; None if the winner is known or the budget is spent.

    The same on every rank and after a resume, as it goes by the trials alone.
    """
    names, done = tuple(trials.candidates), trials.done
    shortest = max(FEWEST_TRIAL_STEPS, budget_steps // (_SHORTEST_SHARE * len(names)))
    number, racing, spent = 0, names, 0
    while True:
        made = [trial for trial in done if trial.round == number]
        wanted = shortest * 2 ** max(0, number - _FIRST_ROUNDS + 1)
        if len(racing) <= 1:
            return None
        num_steps = min(wanted, (budget_steps - spent) // len(racing))
        if num_steps < shortest:
            return None
        if len(made) < len(racing):
            return Round(number, num_steps, racing)
        spent += num_steps * len(racing)
        number += 1
        if number >= _FIRST_ROUNDS:
            so_far = replace(trials, done=[trial for trial in done if trial.round < number])
            verdict = so_far.verdict(horizon_steps=horizon_steps)
            assert verdict is not None
            likely = dict(zip(names, verdict.probability_C, strict=True))
            # The start stays while no other is surely better: it would win, and the others are held against it.
            racing = tuple(name for name in racing if likely[name] >= _HOPELESS or name == verdict.winner)


def run_trials(
    plan: SearchPlan,
    candidates: Mapping[str, Float64s],
    *,
    target: Target,
    stop_asked: Callable[[], bool],
    quiet: bool,
    side_by_side: bool | None = None,
    recorder: SearchRecorder | None = None,
) -> Trials:
    """Make the trials on all ranks together; those that are kept in the search's folder are not made again.

    Args:
        candidates: mixtures by name, of shape (K,), within the constraints; the first is the start.
        target: with fixed weights.
        side_by_side: as of `TrialRunner`.
        recorder: tells of them, if given.

    Raises:
        Interrupted: a stop was asked for.
        FastmixError: a loss is not finite.
    """
    budget, horizon = plan.trial_steps, plan.proxy.training.num_steps
    trials = _kept(plan) or Trials({name: weights_K.tolist() for name, weights_K in candidates.items()})
    spent = sum(trial.num_steps for trial in trials.done)
    per_step = plan.proxy.training.tokens_per_step
    if recorder is not None:
        recorder.enter("trials", done=spent * per_step)
    with progress("trials", total=budget * per_step, done=spent * per_step, quiet=quiet) as advance:
        watch = _StopBetweenSteps(plan, stop_asked, advance, recorder)
        watch.num_tokens = spent * per_step
        runner = TrialRunner(watch, kept=plan.checkpoints_of("trial"), side_by_side=side_by_side)
        while (coming := next_round(trials, budget_steps=budget, horizon_steps=horizon)) is not None:
            made = {trial.candidate for trial in trials.done if trial.round == coming.number}
            names = [name for name in coming.names if name not in made]
            proxy = plan.proxy.with_steps(coming.num_steps)
            num_sequences, skip = _measured(plan, target, trials, coming)
            shared = Measured(
                proxy,
                seed=int(derive_keys(proxy.training.seed, _TRIAL_STREAM, coming.number)[0] >> np.uint64(33)),
                target=target,
                num_sequences=num_sequences,
                skip=skip,
            )
            cost = proxy.training.num_tokens + target.num_evaluated_tokens(num_sequences)
            watch.num_done, started = len(trials.done), time.monotonic()
            for losses in runner.losses([np.array(trials.candidates[name]) for name in names], shared):
                for loss in losses:
                    trial = Trial(names.pop(0), coming.number, coming.num_steps, loss)
                    trials = trials.after(trial, num_tokens=cost, seconds=(time.monotonic() - started) / len(losses))
                    if recorder is not None:  # before it is saved: a line too many is cut off, one too few would be missed
                        _tell(recorder, trials, horizon_steps=horizon, per_step=per_step)
                watch.num_done, started = len(trials.done), time.monotonic()
                if dist.get_rank() == 0:
                    write_json(plan.folder.trials, {"identity": plan.identity, **asdict(trials)})
    return trials


def _tell(recorder: SearchRecorder, trials: Trials, *, horizon_steps: int, per_step: int) -> None:
    """Tell of the newest trial, and of how they stand."""
    newest, verdict = trials.done[-1], trials.verdict(horizon_steps=horizon_steps)
    likely = dict(zip(verdict.names, verdict.probability_C.tolist(), strict=True)) if verdict is not None else None
    recorder.tried(
        newest.candidate,
        round=newest.round,
        num_steps=newest.num_steps,
        loss=newest.loss,
        num_tokens=sum(trial.num_steps for trial in trials.done) * per_step,
        probability=likely,
    )


class _StopBetweenSteps:
    """Moves the progress bar, and ends a round on all ranks if any was asked to stop.

    Attributes:
        num_done: trials that are saved.
        num_tokens: that trials were trained on.
    """

    def __init__(
        self, plan: SearchPlan, stop_asked: Callable[[], bool], advance: Advance, recorder: SearchRecorder | None
    ) -> None:
        self._recorder = recorder
        self._per_step = plan.proxy.training.tokens_per_step
        # At least once in each trial, however seldom the mixture is moved.
        self._interval = min(plan.search.update_interval, FEWEST_TRIAL_STEPS)
        self._stop_asked, self._advance = stop_asked, advance
        self.num_done = self.num_tokens = self._last_step = 0

    def __call__(self, step: int, num_trials: int) -> None:
        # A trial that goes on from its checkpoint begins with a later step than the first one.
        num_tokens = (step - self._last_step if step > self._last_step else step) * num_trials * self._per_step
        self._last_step = step
        self._advance(num_tokens)
        self.num_tokens += num_tokens
        if self._recorder is not None:
            self._recorder.trained(self.num_tokens)
        if step % self._interval == 0 and any_rank(self._stop_asked()):
            saved = "1 trial of the search is saved" if self.num_done == 1 else f"{self.num_done} trials of the search are saved"
            raise Interrupted("", saved, "the same command goes on from there")


def _measured(plan: SearchPlan, target: Target, trials: Trials, coming: Round) -> tuple[int, int]:
    """How many sequences of each target a trial of a round is measured on, and how many those of earlier rounds were."""

    def of_length(num_steps: int) -> int:
        of_each = num_steps * plan.proxy.training.global_batch // (_MEASURED_SHARE * len(target.names))
        return min(plan.search.eval_sequences, max(_FEWEST_MEASURED, of_each))

    lengths = {trial.round: trial.num_steps for trial in trials.done if trial.round < coming.number}
    return of_length(coming.num_steps), sum(map(of_length, lengths.values()))


def _kept(plan: SearchPlan) -> Trials | None:
    saved = read_json(plan.folder.trials) if plan.folder.trials.exists() else {}
    if saved.pop("identity", None) != plan.identity:  # of another search
        return None
    return Trials(**{**saved, "done": [Trial(**trial) for trial in saved["done"]]})
