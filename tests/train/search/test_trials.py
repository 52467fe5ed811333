"""Trials: which are made, that they are paired, that a stopped search goes on with them, and what they decide on planted corpora."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import Interrupted
from fastmix_data.recipe.search import FEWEST_TRIAL_STEPS
from fastmix_data.results.searched_recipe import SearchedEmit
from fastmix_data.workdir import SearchFolder
from train.proxy.engine import process_group
from train.search.plan import SearchPlan
from train.search.search import search
from train.search.trials import Trials, next_round, run_trials
from train.target.target import Target
from train.trials import round_losses
from train.trials.verdict import Trial, Verdict

MakePlan = Callable[..., SearchPlan]
STEP = 16 * 32
# In the order of the sources: noise, same, other; the target is same.
POOR, GOOD, MIDDLE = np.array([0.6, 0.1, 0.3]), np.array([0.05, 0.9, 0.05]), np.array([0.2, 0.6, 0.2])


@settings(max_examples=50)
@given(
    num_mixtures=st.integers(2, 4),
    budget=st.integers(2 * FEWEST_TRIAL_STEPS * 4, 4000),
    apart=st.sampled_from([0.0, 0.01, 0.1]),
    seed=st.integers(0, 10_000),
)
def test_rounds_stay_within_the_budget_and_double_until_one_mixture_is_left(
    num_mixtures: int, budget: int, apart: float, seed: int
) -> None:
    rng, names = np.random.default_rng(seed), tuple("abcd"[:num_mixtures])
    truth = dict(zip(names, apart * rng.normal(size=num_mixtures), strict=True))
    trials, lengths, racing = Trials({name: [1.0] for name in names}), [], names

    def coming() -> Any:
        return next_round(trials, budget_steps=budget, horizon_steps=2 * budget)

    def said() -> Verdict:
        verdict = trials.verdict(horizon_steps=2 * budget)
        assert verdict is not None
        return verdict

    while (found := coming()) is not None:
        assert found.number == len(lengths) and set(found.names) <= set(racing) and len(found.names) > 1
        assert found.names == names or found.number >= 2
        if names[0] in racing and names[0] not in found.names:  # the start leaves only when another is surely better
            assert said().winner != names[0]
        lengths.append(found.num_steps)
        racing = found.names
        for name in found.names:
            assert coming() == found  # by the trials alone, those of an unfinished round included
            # Student's t of two degrees of freedom: now and then a trial is far off
            trial = Trial(name, found.number, found.num_steps, 5 + truth[name] + 0.01 * rng.standard_t(2))
            trials = replace(trials, done=[*trials.done, trial])
    assert sum(trial.num_steps for trial in trials.done) <= budget
    assert lengths[0] == lengths[1] >= FEWEST_TRIAL_STEPS and lengths[0] == min(lengths)
    assert lengths[2:-1] == [lengths[0] * 2**number for number in range(1, len(lengths) - 2)]
    left = budget - sum(trial.num_steps for trial in trials.done)
    likely = dict(zip(names, said().probability_C, strict=True))
    survivors = [name for name in racing if likely[name] >= 0.05 or name == said().winner]
    assert len(survivors) <= 1 or left // len(survivors) < lengths[0]


def test_a_mixture_without_a_rival_is_not_tried() -> None:
    assert next_round(Trials({"start": [0.5, 0.5]}), budget_steps=1000, horizon_steps=2000) is None


def tried(
    plan: SearchPlan,
    candidates: dict[str, np.ndarray],
    folder: Path,
    *,
    stop_asked: Callable[[], bool] = lambda: False,
    of_another: bool = False,
) -> Trials:
    with process_group(rank=0, world_size=1):
        target = Target.of_plan(plan.proxy, plan.target, plan.search, num_ranks=1)
        elsewhere = plan.in_folder(SearchFolder(folder))
        if of_another:
            elsewhere = replace(elsewhere, sections=plan.sections.model_copy(update={"emit": SearchedEmit(token_budget=1)}))
        return run_trials(elsewhere, candidates, target=target, stop_asked=stop_asked, quiet=True)


def test_trials_of_a_round_share_seed_and_target_sequences_and_those_of_another_share_neither(
    planted_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two sequences a step: a quarter of a trial's tokens are 15 sequences of the target, then 30, of 62 that there are.
    plan = planted_plan(global_batch=2, token_budget=2 * 32 * 480, eval_sequences=60, learning_rate=3e-3)
    seeds: list[int] = []
    read: list[list[int]] = []
    train, evaluated = round_losses.train_on_mixture, Target.evaluated

    def train_and_note(*arguments: Any, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return train(*arguments, seed=seed, **options)

    def read_and_note(self: Target, **options: Any) -> Any:
        for reader, source_N, sequence_N in evaluated(self, **options):
            read.append(sequence_N.tolist())
            yield reader, source_N, sequence_N

    monkeypatch.setattr(round_losses, "train_on_mixture", train_and_note)
    monkeypatch.setattr(Target, "evaluated", read_and_note)
    trials = tried(plan, {"start": MIDDLE, "other": MIDDLE * [1.01, 1, 0.99]}, tmp_path)
    rounds = [trial.round for trial in trials.done]
    assert rounds == [0, 0, 1, 1, 2, 2] and [trial.num_steps for trial in trials.done] == [30, 30, 30, 30, 60, 60]
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == 3 and plan.proxy.training.seed not in seeds
    assert read[::2] == read[1::2] and [len(sequences) for sequences in read[::2]] == [15, 15, 30]
    assert len({number for sequences in read for number in sequences}) == 60
    # Mixtures that hardly differ end alike with one seed, much nearer than two seeds.
    losses = np.array([trial.loss for trial in trials.done]).reshape(3, 2)
    assert np.abs(np.diff(losses, axis=1)).max() < 0.2 * np.ptp(losses[:2, 0])
    assert trials.num_tokens == 240 * 2 * 32 + 2 * (15 + 15 + 30) * 32


def test_a_stopped_search_keeps_the_trials_it_has_made_and_goes_on_to_the_same_ones(
    planted_plan: MakePlan, tmp_path: Path
) -> None:
    # An update of the mixture comes more seldom than a trial ends; a stop is seen to all the same.
    plan, candidates = planted_plan(token_budget=STEP * 480, update_interval=50), {"start": POOR, "scores": MIDDLE, "good": GOOD}
    whole = tried(plan, candidates, tmp_path / "whole")
    calls = 0

    def stop_in_the_fourth() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3

    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted, match="3 trials of the search are saved; the same command goes on from there"):
        tried(plan, candidates, folder, stop_asked=stop_in_the_fourth)
    assert len(read_json(folder / "trials.json")["done"]) == 3
    # What is tried is kept too: the run along the scores, made again from its last checkpoint, need not end at the same digits.
    resumed = tried(plan, {name: weights_K * 1.0001 for name, weights_K in candidates.items()}, folder)
    assert {**asdict(resumed), "seconds": 0} == {**asdict(whole), "seconds": 0}
    # Finished ones are read, and those of another recipe are made anew.
    assert tried(plan, candidates, folder, stop_asked=lambda: True) == resumed
    with pytest.raises(Interrupted, match="0 trials"):
        tried(plan, candidates, folder, stop_asked=lambda: True, of_another=True)


@pytest.mark.parametrize(("start", "rival", "winner"), [(MIDDLE, GOOD, "rival"), (GOOD, MIDDLE, "start")])
def test_the_better_mixture_wins_whichever_is_the_start(
    planted_plan: MakePlan, tmp_path: Path, start: np.ndarray, rival: np.ndarray, winner: str
) -> None:
    plan = planted_plan(token_budget=STEP * 480)
    verdict = tried(plan, {"start": start, "rival": rival}, tmp_path).verdict(horizon_steps=480)
    assert verdict is not None and verdict.winner == winner


def test_a_start_that_is_wrong_is_left_and_the_record_says_how_far_it_is_behind(planted_plan: MakePlan) -> None:
    plan = planted_plan(initial_weights={"noise": 6, "same": 1, "other": 3}, token_budget=STEP * 480)
    mixture = search(plan, quiet=True).mixture
    trials, names = mixture.trials, ("noise", "same", "other")
    assert trials is not None and list(trials.mixtures) == ["start", "scores", "count", "proportional"]
    assert trials.winner in ("scores", "count") and mixture.weights == trials.mixtures[trials.winner]
    assert min(trials.mixtures[name]["same"] for name in ("scores", "count")) > 0.5  # both found the target
    assert trials.mixtures["start"] == pytest.approx(mixture.start.weights)
    assert list(mixture.start.weights.values()) == pytest.approx(POOR)
    assert sum(trials.probability.values()) == pytest.approx(1) and set(trials.ahead) == set(trials.mixtures) - {trials.winner}
    for name in ("start", "proportional"):
        mean, low, high = trials.ahead[name]
        assert 0 < low < mean < high
    assert trials.num_pairs("scores", "start") >= 2 and trials.horizon_tokens == 480 * STEP
    # The trials that were saved are of the half of the budget that was theirs, and all of it is in the cost.
    steps = {number: tokens // STEP for number, tokens in trials.tokens.items()}
    made = sum(steps[number] for losses in trials.losses.values() for number in losses)
    measured = 16 * 32 * sum(len(losses) for losses in trials.losses.values())
    assert made <= 240 == mixture.search.num_steps
    assert mixture.search.num_tokens == (240 + made) * STEP + measured + 60 * 8 * 32  # 60 updates with 8 target sequences
    assert all(low <= mixture.weights[name] <= high for name, (low, high) in mixture.certainty.interval.items())
    assert set(mixture.certainty.interval) == set(names)
