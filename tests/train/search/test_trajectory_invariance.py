"""A search does not depend on how it is spread: over ranks, ZeRO stages and passes of gradient accumulation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import Interrupted
from fastmix_data.results.mixture import load_mixture
from train.proxy.engine import process_group
from train.proxy.launch import launch_ranks
from train.recording.search_recorder import Told
from train.search.plan import SearchPlan
from train.search.search import _run_rank, search
from train.search.trials import run_trials
from train.target.target import Target

MakePlan = Callable[..., SearchPlan]
GLOBAL_BATCH, STEP = 16, 16 * 32


class Spread(NamedTuple):
    """Ranks, ZeRO stage, and passes of one optimiser step on a rank."""

    ranks: int
    zero_stage: int
    passes: int


REFERENCE = Spread(1, 0, 1)
SPREADS = (
    REFERENCE,
    Spread(1, 1, 4),
    Spread(1, 2, 1),
    Spread(1, 3, 1),
    Spread(2, 0, 1),
    Spread(2, 1, 4),
    Spread(2, 2, 1),
    Spread(2, 3, 4),
    Spread(4, 3, 4),
)
TWO_RANKS = Spread(2, 1, 1)
COUNTED = {  # by one rank for all
    "sources": ("noise", "same", "masked"),
    "token_budget": STEP * 16,
    "update_interval": 2,
    "initial_weights": "count",
}
# Two targets that compete: their losses beside a reference run's move their weights.
LIMITED = {
    "overrides": ("target.sources={same: 8, other: 1}", "target.not_worse_than=uniform"),
    "token_budget": STEP * 16,
}
STOPPED = {
    "stop": {"tolerance": 0.03},
    "token_budget": STEP * 60,
    "update_interval": 1,
}
TRIED = {"token_budget": STEP * 480}
NUM_TRIED = 2
CANDIDATES = {"start": np.full(3, 1 / 3), "other": np.array([0.1, 0.8, 0.1])}

# Every run computes the same sums of the same float32 numbers, in another order and cut at other places. Rounding is 6e-8 of a sum;
# forward, backward and 16 optimiser steps, each starting from the rounding of the last, were measured to make at most 4e-7 of it. A
# sequence drawn twice, lost or weighted wrongly on one rank shows at 1e-3 or more.
TOLERANCE = 1e-5


def spread_plan(
    planted_plan: MakePlan, kind: str, spread: Spread, *, overrides: tuple[str, ...] = (), **settings: Any
) -> SearchPlan:
    ranks, zero_stage, passes = spread
    name = f"{kind}-ranks{ranks}-zero{zero_stage}-passes{passes}"
    stage = f"deepspeed.zero_stage={zero_stage}"
    return planted_plan(stage, *overrides, name=name, micro_batch=GLOBAL_BATCH // ranks // passes, **settings)


def make_two_trials(plan: SearchPlan, *, rank: int, world_size: int) -> None:
    """Until one rank, the last, is told to end: all of them do, at the same step of the same trial."""
    asked = 0

    def stop_asked() -> bool:
        nonlocal asked
        asked += 1
        return rank == world_size - 1 and asked > NUM_TRIED * (30 // plan.search.update_interval)

    target = Target.of_plan(plan.proxy, plan.target, plan.search, num_ranks=world_size)
    with pytest.raises(Interrupted, match=f"{NUM_TRIED} trials of the search are saved"):
        run_trials(plan, CANDIDATES, target=target, stop_asked=stop_asked, quiet=True)


def work(plans: list[SearchPlan], tried: SearchPlan | None, rank: int, world_size: int, rendezvous: str) -> None:
    """One rank of all runs that have this number of ranks; a process has one process group, which serves them all."""
    for plan in plans:
        _run_rank(plan, False, True, Told(), rank, world_size, rendezvous)
    if tried is not None:
        make_two_trials(tried, rank=rank, world_size=world_size)


def columns(plan: SearchPlan) -> dict[str, np.ndarray]:
    table = pq.read_table(plan.folder.trajectory)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def assert_same_rows(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: object) -> None:
    assert np.array_equal(found["step"], expected["step"]) and np.array_equal(found["tokens"], expected["tokens"])
    for name in ("weights", "scores", "train_loss", "target_loss", "target_weights", "target_losses"):
        scale = np.abs(expected[name]).max()
        assert np.allclose(found[name], expected[name], rtol=0, atol=TOLERANCE * scale), (what, name)


def test_ranks_zero_stage_and_accumulation_leave_every_row_of_the_trajectory_as_it_is(planted_plan: MakePlan) -> None:
    counted = {spread: spread_plan(planted_plan, "counted", spread, **COUNTED) for spread in SPREADS}
    limited = {spread: spread_plan(planted_plan, "limited", spread, **LIMITED) for spread in (REFERENCE, TWO_RANKS)}
    stopped = {spread: spread_plan(planted_plan, "stopped", spread, **STOPPED) for spread in (REFERENCE, TWO_RANKS)}
    tried = {spread: spread_plan(planted_plan, "tried", spread, **TRIED) for spread in (REFERENCE, TWO_RANKS)}
    by_spread = list(chain(counted.items(), limited.items(), stopped.items()))
    for ranks in (2, 4):
        plans = [plan for spread, plan in by_spread if spread.ranks == ranks]
        launch_ranks(work, plans, tried[TWO_RANKS] if ranks == 2 else None, num_ranks=ranks)
    for spread, plan in by_spread:
        if spread.ranks == 1:
            search(plan, quiet=True)
    with process_group(rank=0, world_size=1):
        make_two_trials(tried[REFERENCE], rank=0, world_size=1)

    expected = columns(counted[REFERENCE])
    assert len(expected["step"]) == 8 and np.ptp(expected["weights"], axis=0)[1:].min() > 0.02  # the mixture does move
    for spread, plan in counted.items():
        assert_same_rows(columns(plan), expected, spread)

    one, two = columns(limited[REFERENCE]), columns(limited[TWO_RANKS])
    assert np.ptp(one["target_weights"][:, 0]) > 0.01  # and so do the weights of the targets
    assert_same_rows(two, one, "limited")

    one, two = columns(stopped[REFERENCE]), columns(stopped[TWO_RANKS])
    assert one["step"][-1] < 60
    assert_same_rows(two, one, "stopped")
    assert load_mixture(stopped[TWO_RANKS].folder.mixture).search.stopped.startswith("stood still")
    assert not search(stopped[TWO_RANKS], num_ranks=2, quiet=True).did_work

    made = [read_json(tried[spread].folder.trials)["done"] for spread in (REFERENCE, TWO_RANKS)]
    assert [trial["candidate"] for trial in made[0]] == list(CANDIDATES)
    losses = [trial.pop("loss") for trials in made for trial in trials]
    assert made[0] == made[1] and losses[2:] == pytest.approx(losses[:2], rel=TOLERANCE)
