"""Searches of a benchmark, several at a time, and the proxies that confirm what they found. All are kept in the workdir, so that a stopped
call goes on, and one with more seeds or targets costs only these."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from fastmix_data.machine import Workers
from fastmix_data.results.mixture import Mixture
from pipelines.compare.pool import run_jobs
from pipelines.compare.proxies import unfinished
from pipelines.compare.run import confirming_seeds
from pipelines.compare.searches import FoundMixture, proxy_job, search_mixture
from pipelines.compare.side_by_side import run_side_by_side
from train.search.plan import SearchPlan


def search_all(plans: Sequence[SearchPlan], *, workers: int) -> list[Mixture]:
    """What `fastmix search` finds for each plan; those of one recipe are made once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {plan.recipe_hash: pool.submit(search_mixture, plan, quiet=True) for plan in plans}
        for number, future in enumerate(running.values(), 1):
            future.result()
            print(f"\r{number} of {len(running)} searches", end="", flush=True)
    print()
    return [running[plan.recipe_hash].result() for plan in plans]


def confirm_all(plans: Sequence[SearchPlan], mixtures: Sequence[FoundMixture], *, num_seeds: int, workers: int) -> np.ndarray:
    """Target loss of each plan's mixture on the half that no search saw, mean over confirming proxies of its own, shape (U,)."""
    losses = []
    for plan, mixture in zip(plans, mixtures, strict=True):
        weights_K, importance = plan.constraints.project(np.array(mixture.weights)), plan.target.weights()
        seeds = confirming_seeds(plan.proxy.training.seed, num_seeds=num_seeds)
        losses.append(
            ([proxy_job(plan, weights_K, names=tuple(importance), half="unseen", seed=seed) for seed in seeds], importance)
        )
    # By target: two jobs on one mixture that measure different targets would train the same proxy twice.
    for names in {job.names for jobs, _ in losses for job in jobs}:
        confirming = [job for jobs, _ in losses for job in jobs if job.names == names]
        run_side_by_side(confirming, Workers(num_workers=workers), description=f"confirm {names[0]}")
        run_jobs(unfinished(confirming), Workers(num_workers=workers), description=f"confirm {names[0]}")
    return np.array(
        [
            np.mean([sum(importance[name] * loss for name, loss in job.result().losses.items()) for job in jobs])
            for jobs, importance in losses
        ]
    )
