"""A Dask cluster: one on this machine for as long as the work takes, or one that runs already; and the one way to run jobs on it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import dask
import distributed

from fastmix_data.errors import FastmixError
from fastmix_data.messages import first_line
from pipelines.slurm.workers import SRUN, srun_workers

# One encoding thread per worker process: pools of many processes that fight for the same cores are slower.
_ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# Dask makes its workers give every freed page back at once. Ours allocate the same few megabytes over and over.
_KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 28)}
# Without an address the scheduler's HTTP server asks for port 8787 even where the dashboard is off, and warns the user if another
# Dask has it. Port 0 is whichever is free.
_ANY_FREE_PORT = {"dashboard_address": "127.0.0.1:0"}
_SECONDS_TO_CONNECT = 5
_SECONDS_BETWEEN_NEWS = 0.5
_JOBS_OF_A_MESSAGE = 256
Result = TypeVar("Result")


@contextmanager
def dask_client(*, num_workers: int, scheduler: str | None = None, in_process: bool = False) -> Iterator[distributed.Client]:
    """Connect to workers, each of one thread.

    Args:
        num_workers: worker processes to start on this machine; unused with `scheduler`.
        scheduler: address of a running cluster, `tcp://host:port`, or "srun" for the SLURM allocation that this runs in. Its workers
            see the same file system.
        in_process: run the one worker as a thread of this process, which saves its start on small inputs.
    Raises:
        FastmixError: no scheduler answers there.
    """
    if scheduler == SRUN:
        with srun_workers(_ONE_THREAD | _KEEP_PAGES) as client:
            yield client
        return
    if scheduler is not None:
        with _connect(scheduler) as client:
            yield client
        return
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    # The environment of a worker in this process is the user's own.
    environment = {} if in_process else {"env": _ONE_THREAD}
    with (
        # The allocator reads its settings when a process starts, so they have to be in the environment before that.
        dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in _KEEP_PAGES.items()}),
        distributed.LocalCluster(
            n_workers=1 if in_process else num_workers,
            threads_per_worker=1,
            processes=not in_process,
            dashboard_address=None,
            scheduler_kwargs=_ANY_FREE_PORT,
            # No limit: Dask would pause or kill workers at a share of it, and the memory of ours is bounded by design.
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            **environment,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        if not in_process:
            client.run(_ignore_interrupts)
        yield client


def _ignore_interrupts() -> None:
    """Leave ctrl-C, which a terminal sends to every process, to the one that started the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _connect(scheduler: str) -> distributed.Client:
    where = f"--scheduler {scheduler}"
    try:
        client = distributed.Client(scheduler, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError, TimeoutError) as error:
        problem = f"no Dask scheduler answers there ({first_line(error)})"
        raise FastmixError(where, problem, "start one, or leave it out") from error
    if not client.scheduler_info()["workers"]:
        client.close()
        raise FastmixError(where, "the cluster has no workers", f"start some with `dask worker {scheduler}`")
    # Takes effect on workers that have not encoded yet.
    client.run(os.environ.update, _ONE_THREAD)
    return client


def run_on_cluster(
    client: distributed.Client,
    work: Callable[..., Result],
    jobs: Sequence[Any],
    *,
    advance: Callable[[int], None],
    remedy: str,
    on_result: Callable[[Result], None] | None = None,
    **shared: Any,
) -> list[Result]:
    """Do jobs on the workers of a cluster; the first error stops the rest.

    Args:
        work: called on a worker as `work(job, tell, **shared)`; what it gives to `tell` is added up as the job's progress.
        advance: told here what jobs tell, twice a second for each; all of it by the time that this returns.
        remedy: how to need less memory, for workers that are killed again and again.
        on_result: called here with each result as it comes.
        shared: the same for every job; a future of `client.scatter` where it is large.
    Returns:
        Results in the order of the jobs.
    Raises:
        FastmixError: of a job, or workers were killed.
    """
    told = [0] * len(jobs)
    results: dict[int, Result] = {}
    lock = threading.Lock()  # news come in Dask's thread, results in this one

    def hear(number: int, num_done: int) -> None:
        # News say how far a job is, not what is new: none counts twice when it comes after the result, or a job is done again
        # because its worker died.
        with lock:
            more, told[number] = max(0, num_done - told[number]), max(num_done, told[number])
            advance(more)

    # On a cluster that others use too, a topic of our own.
    topic = f"fastmix-{uuid.uuid4().hex}"
    client.subscribe_topic(topic, lambda event: hear(*event[1]))
    futures = client.map(
        _do_job, range(len(jobs)), jobs, work=work, topic=topic, pure=False, batch_size=_JOBS_OF_A_MESSAGE, **shared
    )
    try:
        for future in distributed.as_completed(futures):
            number, num_done, result = future.result()
            hear(number, num_done)
            results[number] = result
            if on_result is not None:
                on_result(result)
    except distributed.KilledWorker as error:
        problem = f"a worker was killed again and again, most likely for lack of memory ({error})"
        raise FastmixError("", problem, f"use fewer --workers, or {remedy}") from error
    finally:
        client.cancel([future for future in futures if not future.done()])
        client.unsubscribe_topic(topic)
    return [results[number] for number in range(len(jobs))]


def _do_job(number: int, job: Any, *, work: Callable[..., Result], topic: str, **shared: Any) -> tuple[int, int, Result]:
    """Run on a worker: one job, with news of its progress now and then."""
    worker = distributed.get_worker()
    num_done, last = 0, time.monotonic()

    def tell(amount: int) -> None:
        nonlocal num_done, last
        num_done += amount
        if time.monotonic() - last >= _SECONDS_BETWEEN_NEWS:
            worker.log_event(topic, (number, num_done))
            last = time.monotonic()

    result = work(job, tell, **shared)
    return number, num_done, result
