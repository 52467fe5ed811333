"""Proxy runs spread over processes: one at a time in each, with news of their tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import distributed

from fastmix_data.errors import FastmixError
from fastmix_data.progress import progress
from pipelines.cluster import dask_client, num_cores

_TOPIC, _SECONDS_BETWEEN_NEWS = "fastmix-compare", 0.5
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


def run_jobs(
    jobs: Sequence[Job[Result]], *, description: str, num_workers: int | None, scheduler: str | None, quiet: bool
) -> list[Result]:
    """Results in the order of the jobs; the first error stops the rest.

    One worker on this machine is this process itself. Several share its cores, and each keeps its process group from job to job.

    Raises:
        FastmixError: of a job, or workers were killed.
    """
    if not jobs:
        return []
    workers = min(num_workers or num_cores(), len(jobs))
    with progress(description, total=sum(job.num_tokens for job in jobs), quiet=quiet) as advance:
        if workers == 1 and scheduler is None:
            return [_work(job, advance) for job in jobs]
        num_threads = None if scheduler is not None else max(1, num_cores() // workers)
        with dask_client(num_workers=workers, scheduler=scheduler) as client:
            return _on_cluster(client, jobs, num_threads, advance)


def _on_cluster(
    client: distributed.Client, jobs: Sequence[Job[Result]], num_threads: int | None, advance: Callable[[int], None]
) -> list[Result]:
    client.subscribe_topic(_TOPIC, lambda event: advance(event[1]))
    futures = client.map(_work_on_worker, jobs, num_threads=num_threads, pure=False, resources=None)
    try:
        for future in distributed.as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    except distributed.KilledWorker as error:
        raise FastmixError(
            f"a worker was killed again and again, most likely for lack of memory ({error}); use fewer --workers, or a smaller proxy"
        ) from error
    finally:
        client.cancel([future for future in futures if not future.done()])
        client.unsubscribe_topic(_TOPIC)


def _work(job: Job[Result], on_tokens: Callable[[int], None]) -> Result:
    from train.proxy.engine import process_group

    with process_group(rank=0, world_size=1):
        return job.run(on_tokens)


def _work_on_worker(job: Job[Result], *, num_threads: int | None) -> Result:
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    worker = distributed.get_worker()
    untold, last = 0, time.monotonic()

    def on_tokens(num_tokens: int) -> None:
        nonlocal untold, last
        untold += num_tokens
        if time.monotonic() - last >= _SECONDS_BETWEEN_NEWS:
            worker.log_event(_TOPIC, untold)
            untold, last = 0, time.monotonic()

    result = _work(job, on_tokens)
    worker.log_event(_TOPIC, untold)
    return result
