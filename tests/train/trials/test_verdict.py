"""What trials say, held against simulated ones whose truth is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from races import HORIZON, NAMES, race

from train.trials.verdict import Trial, judge

TRIAL_NOISE = 0.02  # nats, about that of a proxy of 30 to 100 steps


def test_intervals_of_differences_cover_the_truth_nine_times_in_ten() -> None:
    """Whatever the size of the differences and how fast they shrink; races drop mixtures, so that their rounds are unbalanced."""
    rng, covered, num_rounds = np.random.default_rng(0), [], []
    for _ in range(200):
        spread, exponent = 10 ** rng.uniform(-2.5, -1), np.clip(rng.normal(0.5, 0.3), 0, 1.5)
        truth = dict(zip(NAMES, spread * rng.normal(size=4), strict=True))
        trials, verdict = race(truth, rng, noise=TRIAL_NOISE, exponent=exponent)
        num_rounds.append(len({trial.round for trial in trials.done}))
        for first, second in combinations(NAMES, 2):
            _, low, high = verdict.difference(first, second)
            covered.append(low <= truth[first] - truth[second] <= high)
    assert 0.85 <= np.mean(covered) <= 0.95
    assert min(num_rounds) == 2 and max(num_rounds) > 3


def test_where_nothing_is_better_the_start_is_seldom_left() -> None:
    rng = np.random.default_rng(1)
    left = [race(dict.fromkeys(NAMES, 0.0), rng, noise=TRIAL_NOISE)[1].winner != "start" for _ in range(150)]
    assert np.mean(left) <= 0.1


def test_a_mixture_that_is_clearly_better_wins_and_one_that_is_clearly_worse_never_does() -> None:
    rng = np.random.default_rng(2)
    truth = {"start": 0.0, "scores": 0.01, "concentrated": -0.03, "proportional": 0.05}
    races = [race(truth, rng, noise=TRIAL_NOISE) for _ in range(100)]
    winners = [verdict.winner for _, verdict in races]
    assert winners.count("concentrated") >= 95 and "proportional" not in winners
    assert np.mean([verdict.noise for _, verdict in races]) == pytest.approx(TRIAL_NOISE, rel=0.4)


def paired(differences_of_rounds: list[tuple[int, float]], *, noise: float = 1e-3) -> list[Trial]:
    """Rounds of two mixtures: steps, and how much the second one's loss is above the first's."""
    rng, trials = np.random.default_rng(3), []
    for number, (num_steps, apart) in enumerate(differences_of_rounds):
        shared = rng.normal(5, 1)
        for name, loss in (("a", shared), ("b", shared + apart)):
            trials.append(Trial(name, number, num_steps, loss + noise * rng.normal()))
    return trials


@pytest.mark.parametrize("apart", [0.05, 0.5])
def test_trials_of_one_length_are_extrapolated_by_what_is_known_of_others(apart: float) -> None:
    """The size of a difference says nothing of how fast it shrinks."""
    trials = paired([(50, apart)] * 6)
    at_their_length = judge(trials, names="ab", horizon_steps=50)
    assert at_their_length.difference("b", "a")[0] == pytest.approx(apart, rel=0.1)
    assert at_their_length.exponent == pytest.approx(0.54, abs=0.04)  # the prior's, of 0.5 +- 0.3 that is not negative
    far = judge(trials, names="ab", horizon_steps=1250)
    mean, low, high = far.difference("b", "a")
    assert far.exponent == pytest.approx(at_their_length.exponent, abs=0.05)
    assert 0 < low < apart * 25**-0.5 < high < apart and low < mean < high
    near = judge(trials, names="ab", horizon_steps=5)
    assert near.difference("b", "a")[0] > apart
    assert far.probability_C.tolist() == [1.0, 0.0] and far.winner == "a"


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_trials_of_several_lengths_tell_how_fast_differences_shrink(exponent: float) -> None:
    lengths = [30, 30, 60, 120, 240]
    verdict = judge(paired([(n, 0.2 * (n / 30) ** -exponent) for n in lengths]), names="ab", horizon_steps=480)
    assert verdict.exponent == pytest.approx(exponent, abs=0.06)
    assert verdict.difference("b", "a")[0] == pytest.approx(0.2 * 16**-exponent, rel=0.2)
    assert verdict.difference("a", "b")[0] == -verdict.difference("b", "a")[0]


def test_what_a_round_shares_tells_nothing_of_a_mixture_that_was_dropped_before_it() -> None:
    """The long rounds are lower for all; a mean over trials would call the mixture worst that was in the first ones only."""
    level, truth = [6.0, 6.1, 4.0, 3.0], {"a": 0.0, "b": -0.05, "c": -0.02}
    names = ["abc", "abc", "ab", "ab"]
    rng = np.random.default_rng(4)
    trials = [
        Trial(name, number, HORIZON, level[number] + truth[name] + 1e-3 * rng.normal())
        for number, present in enumerate(names)
        for name in present
    ]
    verdict = judge(trials, names="abc", horizon_steps=HORIZON)
    for name in "bc":
        assert verdict.difference(name, "a")[0] == pytest.approx(truth[name], abs=5e-3)
    assert verdict.winner == "b" and verdict.probability_C.sum() == pytest.approx(1)
