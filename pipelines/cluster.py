"""A Dask cluster: one on this machine for as long as the work takes, or one that runs already."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import distributed

from fastmix_data.errors import FastmixError

# One encoding thread per worker process: pools of many processes that fight for the same cores are slower.
_ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# Dask makes its workers give every freed page back at once. Ours allocate the same few megabytes over and over.
_KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 28)}
_SECONDS_TO_CONNECT = 5


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def dask_client(*, num_workers: int, scheduler: str | None = None, in_process: bool = False) -> Iterator[distributed.Client]:
    """Connect to workers, each of one thread.

    Args:
        num_workers: worker processes to start on this machine; unused with `scheduler`.
        scheduler: address of a running cluster, `tcp://host:port`. Its workers see the same file system.
        in_process: run the one worker as a thread of this process, which saves its start on small inputs.
    Raises:
        FastmixError: no scheduler answers there.
    """
    if scheduler is not None:
        with _connect(scheduler) as client:
            yield client
        return
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    environment = {} if in_process else {"env": _ONE_THREAD}
    with (
        # The allocator reads its settings when a process starts, so they have to be in the environment before that.
        dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in _KEEP_PAGES.items()}),
        distributed.LocalCluster(
            n_workers=1 if in_process else num_workers,
            threads_per_worker=1,
            processes=not in_process,
            dashboard_address=None,
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
    try:
        client = distributed.Client(scheduler, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError, TimeoutError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FastmixError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({reason}); start one, or leave it out"
        ) from error
    if not client.scheduler_info()["workers"]:
        client.close()
        raise FastmixError(f"--scheduler {scheduler}: the cluster has no workers; start some with `dask worker {scheduler}`")
    # Takes effect on workers that have not encoded yet.
    client.run(os.environ.update, _ONE_THREAD)
    return client
