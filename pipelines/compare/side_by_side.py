"""Proxies that differ in mixture and seed alone, trained and measured side by side in batches, one batch on each GPU at a time."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from fastmix_data.machine import Workers
from pipelines.compare.pool import num_places, run_jobs
from pipelines.compare.proxies import OnTokens, ProxyJob, short_hash, training_identity, unfinished
from train.proxy.engine import own_device
from train.proxy.training import not_finite
from train.side_by_side.stacked import StackedProxies
from train.side_by_side.training import empty_stack, train_side_by_side
from train.side_by_side.trial import try_side_by_side
from train.target.target import stacked_target_losses

_MOST_IN_A_BATCH = 256  # what a call that is stopped may lose; a GPU has long been busy by then


def run_side_by_side(jobs: Sequence[ProxyJob], workers: Workers, *, description: str, wanted: bool | None = None) -> None:
    """Do jobs in batches where there is a GPU and their model allows it; what it does not allow is said once, and left to do.

    Without a GPU a process on each core is the faster way, and nothing is done here.

    Args:
        wanted: whether to do it, without looking for a GPU; None does it on GPUs of this machine.

    Raises:
        FastmixError: the loss of a proxy is not finite, after those of its batch whose is are on disk.
    """
    left = unfinished(jobs)
    if not (torch.cuda.is_available() and workers.scheduler is None if wanted is None else wanted):
        return
    places = min(workers.num_workers or num_places(), num_places())
    remarks = run_jobs(_batches(left, places), replace(workers, num_workers=places), description=f"{description}, side by side")
    if not workers.quiet:
        for remark in sorted(set(remarks) - {""}):
            print(remark, file=sys.stderr, flush=True)


def _batches(jobs: Sequence[ProxyJob], places: int) -> list[_SideBySideJob]:
    """Jobs of one training and one way to measure, dealt to as many places as there are in batches of like sizes."""
    groups: dict[tuple[object, ...], list[ProxyJob]] = defaultdict(list)
    for job in jobs:
        key = short_hash(training_identity(job.plan)), job.names, job.half, job.num_sequences
        groups[key].append(job)
    batches = []
    for group in groups.values():
        num_batches = min(len(group), places * -(-len(group) // (places * _MOST_IN_A_BATCH)))
        batches += [_SideBySideJob(tuple(group[number::num_batches])) for number in range(num_batches)]
    return batches


@dataclass(frozen=True)
class _SideBySideJob:
    """Proxies of one training on several mixtures, some of which may be trained already.

    Attributes:
        jobs: that differ in weights and seed alone.
    """

    jobs: tuple[ProxyJob, ...]

    @property
    def num_tokens(self) -> int:
        """Training tokens of all of them."""
        return sum(job.num_tokens for job in self.jobs)

    def run(self, on_tokens: OnTokens) -> str:
        """Do what is missing, as many at once as fit.

        Returns:
            What is to be said of how it went; where proxies cannot be trained side by side, nothing else is done.
        """
        plan, device = self.jobs[0].plan, own_device()
        trial = try_side_by_side(plan, device=device)
        if not trial.most_at_once:
            return f"proxies are trained one by one: {trial.why_not}"
        remark = ""
        fresh: list[ProxyJob] = []
        trained: list[ProxyJob] = []
        for job in self.jobs:
            (trained if job.is_trained else fresh).append(job)
        for start in range(0, len(fresh), trial.most_at_once):
            remark = self._train(fresh[start : start + trial.most_at_once], on_tokens, device=device) or remark
        for start in range(0, len(trained), trial.most_at_once):
            some = trained[start : start + trial.most_at_once]
            proxies = empty_stack(plan, num_proxies=len(some), device=device)
            for number, job in enumerate(some):
                proxies.set_parameters(number, torch.load(job.folder.proxy, map_location="cpu", weights_only=True))
            _measure(some, proxies)
            on_tokens(sum(job.num_tokens for job in some))
        return remark

    def _train(self, jobs: Sequence[ProxyJob], on_tokens: OnTokens, *, device: torch.device) -> str:
        plan = jobs[0].plan
        per_step = len(jobs) * plan.training.tokens_per_step
        run = train_side_by_side(
            plan,
            np.array([job.weights for job in jobs]),
            seeds=[job.seed for job in jobs],
            device=device,
            on_step=lambda _: on_tokens(per_step),
        )
        finite = [number for number in range(len(jobs)) if run.is_finite_N[number]]
        for number in finite:
            save = partial(torch.save, run.proxies.state_dict(number))
            jobs[number].keep_proxy(save, seconds=run.seconds / len(jobs))
        if len(finite) < len(jobs):
            raise not_finite(plan.training)
        _measure(jobs, run.proxies)
        return f"proxies are trained side by side without a CUDA graph: {run.without_graph}" if run.without_graph else ""


def _measure(jobs: Sequence[ProxyJob], proxies: StackedProxies) -> None:
    """Losses of the targets that any of the jobs lacks, for all of them."""
    first = jobs[0]
    missing = {name: None for job in jobs for name in job.unmeasured}
    found: list[dict[str, float]] = [{} for _ in jobs]
    for name in missing:  # one at a time: the sample of a target must not depend on the others
        losses = stacked_target_losses(proxies, first.plan, names=[name], half=first.half, num_sequences=first.num_sequences)
        for each, more in zip(found, losses, strict=True):
            each |= more
    for job, each in zip(jobs, found, strict=True):
        job.keep_losses(each)
