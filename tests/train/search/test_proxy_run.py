"""A run along the scores, step by step, against plain PyTorch: what is scored, what is trained, and the paper's rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from planted_shards import BLOCK, write_split

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.search import RULES
from fastmix_data.shards.catalog import Catalog
from train.mixture.constraints import stated_constraints
from train.mixture.simplex import uniform
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.losses import loss_weights, to_tensors
from train.proxy.training import MicroBatch, MixtureTraining
from train.search.plan import SearchPlan
from train.search.proxy_run import ProxyRun
from train.search.search import search
from train.target.target import Target

MakePlan = Callable[..., SearchPlan]
STEP = 16 * 32


@contextmanager
def run_of(plan: SearchPlan, initial: Any = None, constraints: Any = None) -> Iterator[tuple[ProxyRun, ProxyEngine, Target]]:
    with process_group(rank=0, world_size=1):
        engine = plan.proxy.build_engine(seed=plan.proxy.training.seed)
        target = Target.of_plan(plan.proxy, plan.target, plan.search, num_ranks=1)
        initial_K = uniform(len(plan.catalog.sources)) if initial is None else np.array(initial)
        run = ProxyRun(plan.proxy, search=plan.search, engine=engine, target=target, initial_K=initial_K, constraints=constraints)
        yield run, engine, target
        engine.close()


def flat(gradients: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.flatten().double() for gradient in gradients])


@pytest.mark.parametrize("method", ["fastmix", "paper"])
def test_scores_of_the_balanced_batch_equal_separate_backward_passes(planted_plan: MakePlan, method: str) -> None:
    """One run makes the step; of another, as far as the step before its update, all sequences are differentiated one by one."""
    settings = {"sources": ("noise", "same", "masked"), "update_interval": 1, "target_memory": 0.0, "micro_batch": 4}
    plan = planted_plan(method=method, hypergradient="all", **settings)
    with run_of(plan) as (run, _, _):
        run.search_step()
        (row,) = run.trajectory.rows
    with run_of(plan) as (run, engine, target):
        run.plain_step()
        module = engine.module.eval()
        parameters = list(module.parameters())
        target_loss = torch.stack(list(target.batch_losses(engine))).sum()
        v = flat(list(torch.autograd.grad(target_loss, parameters)))
        if RULES[method].precondition:
            moments = engine.second_moments(parameters)
            assert moments is not None
            v /= flat([square.sqrt() + 0.5 * square.mean().sqrt() for _, square in moments])
        alignment_K, tokens_K, loss_K = np.zeros((3, 3))
        batch = deepcopy(run._scored).next(uniform(3))
        for source, number in zip(batch.source_B, batch.sequence_B, strict=True):
            sequences = run._training.reader.read(np.array([source]), np.array([number]))
            inputs, labels_BT = to_tensors(sequences, device=engine.device)
            loss = engine.bare_sequence_losses(inputs, labels_BT).sum()
            alignment_K[source] += float(v @ flat(list(torch.autograd.grad(loss, parameters))))
            loss_K[source] += float(loss.detach())
            tokens_K[source] += sequences.carries_loss_BT.sum()
    assert sorted(np.bincount(batch.source_B)) == [5, 5, 6]  # equally many, of 16
    assert row.divisor == tokens_K.tolist() and tokens_K[0] > 3 * tokens_K[2] > 0
    assert row.alignment == pytest.approx(alignment_K, rel=1e-4, abs=1e-5 * np.abs(alignment_K).max())
    assert row.loss == pytest.approx(loss_K, rel=1e-5) and row.target_loss == pytest.approx(float(target_loss.detach()), rel=1e-5)


@pytest.mark.parametrize(("num_sources", "batch"), [(3, 16), (40, 8), (6, 4)])
def test_every_source_is_scored_equally_often_whatever_its_share(planted_plan: MakePlan, num_sources: int, batch: int) -> None:
    plan = with_sources(
        planted_plan(global_batch=batch, target_batch=2, update_interval=1, token_budget=batch * 32 * 20), num_sources
    )
    favoured = np.full(num_sources, 0.1 / (num_sources - 1))
    favoured[-1] = 0.9
    with run_of(plan, favoured) as (run, _, _):
        for _ in range(20):
            run.search_step()
        # A source's last sequence may lack some labels.
        scored_UK = np.ceil(np.array([row.divisor for row in run.trajectory.rows]) / 32)
    assert (scored_UK.sum(axis=1) == batch).all()
    turns_UK = scored_UK.reshape(-1, -(-num_sources // batch), num_sources).sum(axis=1)
    assert turns_UK.min() >= max(1, batch // num_sources)  # in each turn that all sources have
    assert np.ptp(scored_UK.sum(axis=0)) <= 1


def with_sources(plan: SearchPlan, number: int) -> SearchPlan:
    """The same search of so many sources of noise, beside its target."""
    catalog, rng = plan.catalog, np.random.default_rng(0)
    names = tuple(f"source{k}" for k in range(number))
    root = plan.folder.root.parent / "many"
    rows = [write_split(root, name, "train", rng.integers(1, 64, 8 * BLOCK)) for name in names]
    rows.append(write_split(root, "goal", "valid", rng.integers(1, 64, 8 * BLOCK)))
    many = Catalog(root, replace(catalog.info, sources=names, target_files=("goal",)), rows)
    target = plan.target.model_validate({"files": {"goal": {"files": "goal.txt"}}})
    free = stated_constraints(ConstraintsSection(), sources=names)
    return replace(plan, proxy=replace(plan.proxy, catalog=many), target=target, constraints=free)


def state(engine: ProxyEngine) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in engine.module.parameters()]


def test_scoring_leaves_training_untouched(planted_plan: MakePlan) -> None:
    """A plain training that samples the same mixtures ends with the same parameters, to the bit; dropout draws as without scores."""
    gpt2 = "{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 32}"
    plan = planted_plan(f"proxy.config={gpt2}", token_budget=24 * STEP)
    with run_of(plan) as (run, engine, _):
        assert engine.module.config.resid_pdrop == 0.1
        torch.manual_seed(0)
        for _ in range(24):
            run.search_step()
        rows, found = run.trajectory.rows, state(engine)
    mixtures = {row.step: np.array(row.weights) for row in rows}
    assert np.ptp([row.weights[1] for row in rows]) > 0.1
    with process_group(rank=0, world_size=1):
        engine = plan.proxy.build_engine(seed=plan.proxy.training.seed)
        training, weights_K = MixtureTraining(plan.proxy, engine, seed=plan.proxy.training.seed), uniform(3)

        def train_on(batch: MicroBatch) -> None:
            losses_B = engine.sequence_losses(batch.inputs, batch.labels_BT)
            tokens_K = training.reader.mean_loss_tokens_K
            factor_K = loss_weights(weights_K, exploration=0.0, mean_loss_tokens_K=tokens_K, global_batch=16)
            engine.backward((losses_B * torch.tensor(factor_K[batch.source_B]).to(losses_B)).sum())

        torch.manual_seed(0)
        for step in range(24):
            weights_K = mixtures.get(step, weights_K)
            training.train_step(weights_K, train_on)
        expected = state(engine)
        engine.close()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_paper_samples_uniformly_and_weighs_losses_by_ratios(planted_plan: MakePlan) -> None:
    plan = planted_plan(method="paper", sources=("noise", "same", "masked"))
    weights_K = np.array([0.1, 0.3, 0.6])
    with run_of(plan, weights_K) as (run, engine, _):
        run.plain_step()
        found = state(engine)
    with process_group(rank=0, world_size=1):
        engine = plan.proxy.build_engine(seed=plan.proxy.training.seed)
        training, sources = MixtureTraining(plan.proxy, engine, seed=plan.proxy.training.seed), []

        def train_on(batch: MicroBatch) -> None:
            sources.extend(batch.source_B.tolist())
            ratios_B = torch.tensor(3 * weights_K[batch.source_B], dtype=torch.float32)
            losses_B = engine.sequence_losses(batch.inputs, batch.labels_BT)
            engine.backward((ratios_B * losses_B).sum() / float(16 * (weights_K @ training.reader.mean_loss_tokens_K)))

        training.train_step(uniform(3), train_on)
        expected = state(engine)
        engine.close()
    assert sorted(np.bincount(sources)) == [5, 5, 6]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_the_papers_rule_is_one_word_and_a_key_that_is_given_counts(planted_plan: MakePlan) -> None:
    left_out = {"update_interval": None, "initial_weights": None, "average_fraction": 1.0}
    plan = planted_plan(method="paper", token_budget=480 * STEP, **left_out)
    keys = plan.search
    assert (keys.hypergradient, keys.update_interval, keys.target_memory, plan.trial_steps) == ("head", 20, 0.0, 0)
    mixture = search(planted_plan(method="paper", token_budget=60 * STEP, **left_out), quiet=True).mixture
    rows = pq.read_table(plan.folder.trajectory).to_pylist()
    assert (
        [row["step"] for row in rows] == [20, 40, 60] and mixture.trials is None and mixture.method == "paper (head parameters)"
    )
    # Adam's first move is its rate in each logit, up for the sources that score above the mixture.
    moved_K = np.log(np.array(rows[0]["weights"]) * 3)
    scores_K = np.array(rows[0]["scores"])
    up_K = np.sign(scores_K - scores_K.mean())
    assert moved_K - moved_K.max() == pytest.approx(0.01 * (up_K - 1), abs=1e-6)
    assert list(mixture.weights.values()) == pytest.approx(np.mean([row["weights"] for row in rows], axis=0))

    given = planted_plan(method="paper", update_interval=5, initial_weights="count", trial_fraction=0.5, token_budget=480 * STEP)
    assert (given.search.update_interval, given.search.hypergradient, given.trial_steps) == (5, "head", 240)
    assert given.search.rule == RULES["paper"] and given.as_published().trial_steps == 0
    assert planted_plan().as_published().search.update_interval == 20
