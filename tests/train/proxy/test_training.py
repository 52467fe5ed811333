"""The one training loop: its learning rate, its batches, its results; and plans, which travel to other processes."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_shards import write_split
from torch.optim.lr_scheduler import CosineAnnealingLR

from fastmix_data.errors import FastmixError, MismatchError, RecipeError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.shards.catalog import Catalog, ShardRow
from train.proxy.engine import process_group
from train.proxy.losses import IGNORED
from train.proxy.training import MicroBatch, MixtureTraining, PlainRun, ProxyPlan, learning_rate_at, micro_batch, train_on_mixture
from train.search.plan import SearchPlan, plan_search

STEP = 16 * 32
SOURCES = ("noise", "same", "masked")
WEIGHTS_K = np.array([0.2, 0.5, 0.3])


@pytest.fixture
def search_plan(planted_recipe: Callable[..., Path]) -> SearchPlan:
    return plan_search(load_recipe(planted_recipe(sources=SOURCES, token_budget=STEP * 120)))


@pytest.fixture
def plan(search_plan: SearchPlan) -> ProxyPlan:
    """Of four steps."""
    return search_plan.proxy.with_steps(4)


def with_training(plan: ProxyPlan, **changed: object) -> ProxyPlan:
    return replace(plan, training=plan.training.model_copy(update=changed))


def train(plan: ProxyPlan, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """The parameters after a plain run."""
    with process_group(rank=0, world_size=1):
        engine = train_on_mixture(plan, WEIGHTS_K, seed=seed).engine
        parameters = {name: value.clone() for name, value in engine.module.state_dict().items()}
        engine.close()
    return parameters


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_learning_rate_rises_in_equal_steps_and_falls_as_pytorchs_cosine() -> None:
    training = TrainingSection(
        token_budget=1000 * 100,
        global_batch=10,
        sequence_length=100,
        learning_rate=0.2,
        warmup_fraction=0.1,
        min_lr_fraction=0.25,
    )
    rates = [learning_rate_at(step, training) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * step / 10 for step in range(1, 11)])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    schedule, expected = CosineAnnealingLR(optimizer, T_max=90, eta_min=0.05), []
    for _ in range(90):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates[10:] == pytest.approx(expected)


@given(st.integers(2, 300), st.floats(0, 0.99), st.floats(0, 1))
def test_learning_rate_is_positive_and_rises_before_it_falls(num_steps: int, warmup: float, end: float) -> None:
    training = TrainingSection(token_budget=10**4, learning_rate=1.0, warmup_fraction=warmup, min_lr_fraction=end)
    training = training.with_steps(num_steps)
    rates = np.array([learning_rate_at(step, training) for step in range(num_steps)])
    peak = int(rates.argmax())
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) <= 1e-15).all()
    assert rates[peak] == pytest.approx(1) and rates.min() > 0


def test_batches_that_cannot_be_cut_are_refused_with_a_number_that_can() -> None:
    training = TrainingSection(token_budget=10**6, global_batch=16)
    assert [micro_batch(training, num_ranks) for num_ranks in (1, 2, 16)] == [16, 8, 1]
    small = training.model_copy(update={"micro_batch": 4})
    assert [micro_batch(small, num_ranks) for num_ranks in (1, 2, 4)] == [4, 4, 4]
    with pytest.raises(RecipeError) as caught:
        micro_batch(training, 3)
    assert str(caught.value) == "training.global_batch: 16 cannot be divided over 3 ranks; use a multiple, for example 18"
    with pytest.raises(RecipeError) as caught:
        micro_batch(training.model_copy(update={"micro_batch": 3}), 2)
    expected = "training.micro_batch: 3 does not divide a rank's 8 sequences (global_batch 16 over 2 ranks); use a divisor"
    assert str(caught.value) == expected


def batches_of(plan: ProxyPlan, *, num_steps: int) -> list[MicroBatch]:
    """Every pass of a training on weights that change from step to step."""
    seen: list[MicroBatch] = []
    with process_group(rank=0, world_size=1):
        engine = plan.build_engine(seed=0)
        run = MixtureTraining(plan, engine, seed=5)

        def train_on(batch: MicroBatch) -> None:
            seen.append(batch)
            engine.backward(engine.sequence_losses(batch.inputs, batch.labels_BT).sum())

        for step in range(num_steps):
            assert run.step == step and run.learning_rate == learning_rate_at(step, plan.training)
            run.train_step(np.roll(WEIGHTS_K, step), train_on)
        engine.close()
    return seen


def test_global_batches_do_not_depend_on_micro_batches(plan: ProxyPlan) -> None:
    whole = batches_of(plan, num_steps=3)
    assert [len(batch.source_B) for batch in whole] == [16] * 3
    cut = batches_of(with_training(plan, micro_batch=4), num_steps=3)
    assert [len(batch.source_B) for batch in cut] == [4] * 12
    for step, batch in enumerate(whole):
        parts = cut[4 * step : 4 * step + 4]
        assert np.array_equal(np.concatenate([part.source_B for part in parts]), batch.source_B)
        assert torch.equal(torch.cat([part.inputs.tokens_BT for part in parts]), batch.inputs.tokens_BT)
        assert torch.equal(torch.cat([part.labels_BT for part in parts]), batch.labels_BT)
    for batch in whole + cut:
        carries_loss = batch.labels_BT != IGNORED
        assert np.array_equal(batch.num_loss_tokens_B, carries_loss.sum(dim=1).numpy())
        following = carries_loss[:, :-1]
        assert torch.equal(batch.labels_BT[:, :-1][following], batch.inputs.tokens_BT[:, 1:][following])
    is_masked = np.concatenate([batch.source_B for batch in whole]) == SOURCES.index("masked")
    shares = np.concatenate([batch.num_loss_tokens_B for batch in whole]) / 32
    assert is_masked.any() and np.allclose(shares[is_masked], 0.25) and np.allclose(shares[~is_masked], 1)


def test_what_is_read_ahead_is_what_is_read_in_line_and_the_sampler_stands_after_what_was_trained_on(plan: ProxyPlan) -> None:
    """In runs of 3 steps that draw alike, in the middle of which a sampler that stood after what was read would be ahead."""
    plan, before = with_training(plan, micro_batch=8), reading_threads()
    with process_group(rank=0, world_size=1):
        engine = plan.build_engine(seed=0)
        runs = {steps_alike: MixtureTraining(plan, engine, seed=5) for steps_alike in (1, 3)}
        seen: dict[int, list[torch.Tensor]] = {1: [], 3: []}
        states: dict[int, list[dict[str, Any]]] = {1: [], 3: []}
        for step in range(6):
            for steps_alike, run in runs.items():

                def train_on(batch: MicroBatch, steps_alike: int = steps_alike) -> None:
                    seen[steps_alike] += [batch.inputs.tokens_BT, batch.labels_BT, torch.from_numpy(batch.source_B)]
                    engine.backward(engine.sequence_losses(batch.inputs, batch.labels_BT).sum())

                run.train_step(np.roll(WEIGHTS_K, step // 3), train_on, steps_alike=steps_alike)
                states[steps_alike].append(run.sampler.state_dict())
        engine.close()
    assert len(seen[1]) == 36 and all(torch.equal(one, other) for one, other in zip(seen[1], seen[3], strict=True))
    assert states[1] == states[3] and [state["step"] for state in states[3]] == [1, 2, 3, 4, 5, 6]
    assert reading_threads() == before


def test_an_error_ends_the_thread_that_reads_and_one_of_its_own_is_raised_by_the_step(plan: ProxyPlan) -> None:
    before = reading_threads()

    def interrupted(_: MicroBatch) -> None:
        assert reading_threads() > before
        raise KeyboardInterrupt

    with process_group(rank=0, world_size=1):
        engine = plan.build_engine(seed=0)
        run = MixtureTraining(plan, engine, seed=5)
        with pytest.raises(KeyboardInterrupt):
            run.train_step(WEIGHTS_K, interrupted, steps_alike=50)
        assert reading_threads() == before
        with pytest.raises(
            ValueError, match="broadcast"
        ):  # shares of another number of sources, which only the thread's plan sees
            run.train_step(np.ones(7) / 7, interrupted, steps_alike=50)
        assert reading_threads() == before and run.step == 0 and run.sampler.step == 0
        engine.close()


def reading_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "read-ahead" in thread.name}


def test_the_given_seed_fixes_the_proxy_and_not_the_plans(plan: ProxyPlan) -> None:
    first = train(plan, seed=3)
    assert are_equal(first, train(with_training(plan, seed=9), seed=3))
    assert not are_equal(first, train(plan, seed=4))


def test_the_callers_time_is_not_training_time_and_a_saved_proxy_comes_back(plan: ProxyPlan, tmp_path: Path) -> None:
    steps: list[int] = []

    def on_step(step: int, engine: object) -> None:
        steps.append(step)
        time.sleep(0.2)

    with process_group(rank=0, world_size=1):
        started = time.monotonic()
        run: PlainRun = train_on_mixture(plan, WEIGHTS_K, seed=0, on_step=on_step)
        assert time.monotonic() - started - run.seconds >= 4 * 0.2 and steps == [1, 2, 3, 4]
        run.save(tmp_path / "proxy.pt")
        trained = {name: value.clone() for name, value in run.engine.module.state_dict().items()}
        run.engine.close()
        again = plan.build_engine(seed=1, parameters=tmp_path / "proxy.pt")
        assert are_equal(trained, again.module.state_dict())
        again.close()


def test_a_proxy_that_diverges_is_refused_with_the_key_to_lower(plan: ProxyPlan) -> None:
    with pytest.raises(FastmixError) as caught:
        train(with_training(plan, learning_rate=1e10))
    assert str(caught.value) == "the proxy's loss is not finite; lower training.learning_rate (now 10000000000.0)"


def test_a_source_smaller_than_a_sequence_is_refused(plan: ProxyPlan, tmp_path: Path) -> None:
    rows = [row for row in plan.catalog.rows if row.source != "masked"]
    catalog = Catalog(tmp_path, plan.catalog.info, rows)
    with pytest.raises(FastmixError, match=r"source masked: its train split is smaller than one sequence of 32 tokens"):
        replace(plan, catalog=catalog).training_data()


def test_plans_travel_by_the_catalogs_path(search_plan: SearchPlan) -> None:
    sent = pickle.dumps(search_plan)
    assert search_plan.catalog.rows[0].sha256.encode() not in sent
    here: SearchPlan = pickle.loads(sent)
    assert here.catalog.rows == search_plan.catalog.rows and here.identity == search_plan.identity
    assert here.proxy.training == search_plan.proxy.training and here.folder.root == search_plan.folder.root
    assert here.proxy.config.to_dict() == search_plan.proxy.config.to_dict()
    other: ProxyPlan = pickle.loads(pickle.dumps(search_plan.main))
    assert other.catalog is here.catalog  # read once by a process, whatever is sent to it


def test_a_catalog_that_changed_under_a_plan_is_refused(search_plan: SearchPlan, tmp_path: Path) -> None:
    catalog, sent = search_plan.catalog, pickle.dumps(search_plan.proxy)
    row: ShardRow = write_split(tmp_path / "more", "noise", "train", np.arange(64))
    Catalog(catalog.root, catalog.info, [*catalog.rows, row]).save(catalog.root / "catalog.parquet")
    with pytest.raises(MismatchError, match=r"the catalog changed while it was in use; run the same command again"):
        pickle.loads(sent)
