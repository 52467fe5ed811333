"""A confirming proxy of `compare`, one process, which is killed while it trains and run again."""

from __future__ import annotations

import shutil

import torch

from pipelines.compare.proxies import ProxyJob
from train.proxy.engine import process_group
from train.search.plan import SearchPlan

_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def job_of(plan: SearchPlan, *, seed: int) -> ProxyJob:
    """A proxy of its own for each seed, with a checkpoint after every second step."""
    proxy = plan.proxy.on_one_rank()
    return ProxyJob(
        proxy, _WEIGHTS, seed, names=tuple(plan.target.weights()), half="unseen", num_sequences=8, checkpoint_interval=2
    )


def train(job: ProxyJob) -> None:
    """Do what is left of it."""
    with process_group(rank=0, world_size=1):
        job.run(lambda _: None)


def take_away(job: ProxyJob) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Parameters and losses of a finished one, which is removed."""
    parameters, losses = torch.load(job.folder.proxy, weights_only=True), job.result().losses
    shutil.rmtree(job.folder.root)
    return parameters, losses


def difference(job: ProxyJob, expected: tuple[dict[str, torch.Tensor], dict[str, float]]) -> str:
    """How a finished one differs from another, which must be the same to the bit; empty if it does not."""
    parameters, losses = take_away(job)
    if parameters.keys() != expected[0].keys() or not all(
        torch.equal(parameters[name], expected[0][name]) for name in parameters
    ):
        return "the parameters are not the same"
    return "" if losses == expected[1] else "the losses are not the same"
