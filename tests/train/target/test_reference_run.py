"""Searches with a reference run on planted corpora: two targets that compete for the mixture.

That ranks move the target weights as one does is in `test_trajectory_invariance.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
from stopped_search import stop_after_a_checkpoint

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import Interrupted
from fastmix_data.recipe.target import TargetSection
from fastmix_data.results.mixture import Limit, Mixture
from train.checkpoints.checkpoints import CheckpointPlan
from train.proxy.engine import process_group
from train.search.plan import SearchPlan
from train.search.search import search
from train.target.outcome import ReferenceComparison, broken_limits, target_record
from train.target.reference_run import ReferenceRun, reference_run
from train.target.target import Target
from train.target.target_weights import ReferenceLosses

STEP = 16 * 32
UNEVEN = "target.sources={same: 8, other: 1}"
WORST_CASE, LIMIT = "target.worst_case=true", "target.not_worse_than=uniform"


@pytest.fixture
def competing(planted_plan: Callable[..., SearchPlan]) -> Callable[..., SearchPlan]:
    """The plan of a search for two targets of which one weighs little."""

    def make(*options: str, num_steps: int = 120, **settings: object) -> SearchPlan:
        return planted_plan(UNEVEN, *options, token_budget=STEP * num_steps, eval_sequences=32, **settings)

    return make


def trajectory(plan: SearchPlan) -> dict[str, np.ndarray]:
    table = pq.read_table(plan.folder.trajectory)
    assert b'"targets":["same","other"]' in table.schema.metadata[b"fastmix"]
    return {name: np.array(table[name].to_pylist()) for name in ("weights", "target_weights", "target_losses", "target_loss")}


def excesses(mixture: Mixture, reference: Mixture) -> dict[str, float]:
    return {
        name: losses["search_end"] - reference.target.losses[name]["reference_end"]
        for name, losses in mixture.target.losses.items()
    }


@pytest.mark.parametrize(("target_memory", "least_shift"), [(0.0, 0.2), (0.8, 0.1)])  # with memory a limit overshoots less
def test_worst_case_and_limits_protect_the_target_that_plain_weights_sacrifice(
    competing: Callable[..., SearchPlan], target_memory: float, least_shift: float
) -> None:
    plans = {
        name: competing(*options, name=name, target_memory=target_memory)
        for name, options in {"plain": (), "worst": (WORST_CASE,), "limit": (LIMIT,)}.items()
    }
    found = {name: search(plan, quiet=True) for name, plan in plans.items()}
    plain, worst, limit = (found[name].mixture for name in ("plain", "worst", "limit"))
    sacrificed = excesses(plain, worst)
    assert max(sacrificed.values()) == sacrificed["other"] > 0.3
    assert max(excesses(worst, worst).values()) < 0.1
    assert worst.target.worst is not None and worst.target.worst.regret == max(excesses(worst, worst).values())
    assert worst.target.limits == {} and plain.target.worst is None and limit.target.worst is None
    assert limit.target.limits["other"].kept and not found["limit"].warnings
    assert plain.target.weights == pytest.approx({"same": 8 / 9, "other": 1 / 9})
    assert trajectory(plans["limit"])["target_weights"][:, 1].max() > 0.5
    assert limit.weights["other"] > plain.weights["other"] + least_shift
    assert trajectory(plans["plain"])["target_weights"] == pytest.approx(np.tile([8 / 9, 1 / 9], (30, 1)))
    # 8 measurements of 32 sequences of 2 targets by the reference and as many by the search, 30 target batches of 8
    assert plain.search.num_tokens == 120 * STEP + 30 * 8 * 32
    assert limit.search.num_tokens == plain.search.num_tokens + 120 * STEP + 2 * 8 * 2 * 32 * 32


def test_a_resumed_search_goes_on_with_its_target_weights_and_its_reference(competing: Callable[..., SearchPlan]) -> None:
    whole, stopped = (competing(LIMIT, name=name, num_steps=32, checkpoint_interval=8) for name in ("whole", "stopped"))
    search(whole, quiet=True)
    stop_after_a_checkpoint(stopped)
    written = stopped.folder.reference.stat().st_mtime_ns
    resumed = search(stopped, quiet=True).mixture
    assert stopped.folder.reference.stat().st_mtime_ns == written
    assert stopped.folder.trajectory.read_bytes() == whole.folder.trajectory.read_bytes()
    assert np.ptp(trajectory(whole)["target_weights"][:, 0]) > 0.01
    assert resumed.search.num_tokens > 2 * 32 * STEP


def test_a_reference_run_is_made_once_and_a_stopped_one_goes_on_where_it_was(competing: Callable[..., SearchPlan]) -> None:
    plan = competing(LIMIT, num_steps=16)
    path, target = plan.folder.reference, Target.of_plan(plan.proxy, plan.target, plan.search, num_ranks=1)

    def make(*, recipe_hash: str, stop: bool) -> ReferenceRun:
        return reference_run(
            plan.proxy,
            plan.search,
            mixture="uniform",
            target=target,
            path=path,
            kept=CheckpointPlan(path.with_name("made"), {"recipe": recipe_hash}),
            stop_asked=lambda: stop,
            quiet=True,
        )

    with process_group(rank=0, world_size=1):
        whole = make(recipe_hash="first", stop=False)
        path.unlink()
        for step in (4, 8):  # the targets are measured at these steps, too
            with pytest.raises(
                Interrupted, match=f"reference run is saved at step {step} of 16; the same command goes on from there"
            ):
                make(recipe_hash="first", stop=True)
        assert not path.exists()
        resumed = make(recipe_hash="first", stop=False)
        assert (resumed.losses, resumed.num_tokens) == (whole.losses, whole.num_tokens)
        assert make(recipe_hash="first", stop=True) == resumed
        assert not path.with_name("made").exists()
        with pytest.raises(Interrupted, match="at step 4"):
            make(recipe_hash="other", stop=True)


def test_a_search_that_ends_early_is_held_against_the_reference_after_as_many_steps(
    competing: Callable[..., SearchPlan],
) -> None:
    plan = competing(
        LIMIT,
        num_steps=60,
        update_interval=1,
        stop={"tolerance": 0.9},
    )
    mixture = search(plan, quiet=True).mixture
    assert 16 <= mixture.search.num_steps < 60
    expected = ReferenceLosses(**read_json(plan.folder.reference)["losses"]).at(mixture.search.num_steps)
    assert [limit.reference for limit in mixture.target.limits.values()] == pytest.approx(expected.tolist())


def test_a_limit_that_was_not_kept_is_named_with_what_to_do() -> None:
    section = TargetSection(sources={"same": 1.0, "other": 1.0}, not_worse_than="uniform", limit_tolerance=0.05, worst_case=True)
    losses = {"same": {"search_end": 2.0}, "other": {"search_end": 3.0}}
    comparison = ReferenceComparison(np.array([2.0, 3.0]), np.array([1.96, 2.9]))
    record = target_record(section, losses, comparison=comparison, weights_UG=np.array([[0.2, 0.8], [0.4, 0.6]]))
    assert record.limits == {
        "same": Limit(reference=1.96, loss=2.0, kept=True),
        "other": Limit(reference=2.9, loss=3.0, kept=False),
    }
    assert record.worst is not None and (record.worst.target, round(record.worst.regret, 6)) == ("other", 0.1)
    assert record.loss == {"search_end": 2.5} and record.losses["other"]["reference_end"] == 2.9
    assert record.weights == pytest.approx({"same": 0.3, "other": 0.7})
    (warning,) = broken_limits(Mixture(weights={"same": 1.0}, target=record))
    assert "other (3.000 nats, 0.100 above the reference run)" in warning and "same" not in warning
    assert "target.limit_tolerance" in warning
