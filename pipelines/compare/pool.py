"""Proxy runs spread over processes: one at a time in each, with news of their tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import distributed

from fastmix_data.machine import Workers, num_cores
from fastmix_data.progress import progress
from pipelines.cluster import dask_client, run_on_cluster

Result = TypeVar("Result", covariant=True)


class Job(Protocol[Result]):
    """A picklable piece of work."""

    @property
    def num_tokens(self) -> int:
        """Tokens that it passes."""
        ...

    def run(self, on_tokens: Callable[[int], None]) -> Result:
        """Do it, telling how many tokens more have passed."""
        ...


def run_jobs(jobs: Sequence[Job[Result]], workers: Workers, *, description: str) -> list[Result]:
    """Results in the order of the jobs; the first error stops the rest.

    One worker on this machine is this process itself. Several share its cores, or take its GPUs in turn, and each keeps its process
    group from job to job.

    Raises:
        FastmixError: of a job, or workers were killed.
    """
    if not jobs:
        return []
    num_workers = min(workers.num_workers or num_places(), len(jobs))
    with progress(description, total=sum(job.num_tokens for job in jobs), quiet=workers.quiet) as advance:
        if num_workers == 1 and workers.scheduler is None:
            return [_work(job, advance, num_threads=None) for job in jobs]
        # Threads of several proxies on the same cores would spin against one another. What a foreign cluster has, we do not know.
        num_threads = None if workers.scheduler is not None else max(1, num_cores() // num_workers)
        with dask_client(num_workers=num_workers, scheduler=workers.scheduler) as client:
            return run_on_cluster(client, _work, jobs, advance=advance, remedy="a smaller proxy", num_threads=num_threads)


def num_places() -> int:
    """Proxies that this machine trains at once without slowing each other: one on each GPU, or on each core where there is none."""
    import torch

    return torch.cuda.device_count() or num_cores()


def _work(job: Job[Result], on_tokens: Callable[[int], None], *, num_threads: int | None) -> Result:
    import torch

    from train.proxy.engine import process_group

    if num_threads is not None:
        torch.set_num_threads(num_threads)
        if torch.cuda.is_available():
            # Workers of this machine are numbered, and see all of its GPUs; those of another cluster see what it gave them.
            os.environ["LOCAL_RANK"] = str(distributed.get_worker().name % torch.cuda.device_count())
    with process_group(rank=0, world_size=1):
        return job.run(on_tokens)
