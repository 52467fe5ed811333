"""Dask workers in the SLURM allocation that a command runs in: one for each of its tasks, started by srun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import distributed

from fastmix_data.errors import FastmixError

SRUN = "srun"
_SECONDS_TO_START, _SECONDS_TO_END = 300, 20
_WHERE = f"--scheduler {SRUN}"


@contextmanager
def srun_workers(environment: Mapping[str, str]) -> Iterator[distributed.Client]:
    """A scheduler in this process, and a worker for each task of the allocation.

    Args:
        environment: of the workers, beside this process's own.

    Raises:
        FastmixError: this is no allocation, or workers did not start.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise FastmixError(_WHERE, "this is no allocation of SLURM", "call it in a script of sbatch, or in a shell of salloc")
    num_workers = int(os.environ.get("SLURM_NTASKS", "1"))
    address = socket.gethostbyname(socket.gethostname())
    quiet = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error", "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
    cluster = distributed.LocalCluster(
        n_workers=0, host=address, dashboard_address=None, scheduler_kwargs={"dashboard_address": f"{address}:0"}, silence_logs=50
    )
    # Each task gets a GPU of its own where the allocation has some, and sees no other.
    gpus = ["--gpus-per-task=1"] if os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0" else []
    step = ["srun", "--overlap", f"--ntasks={num_workers}", *gpus]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    options = ["--nthreads=1", "--no-nanny", "--no-dashboard", "--memory-limit=0", f"--death-timeout={_SECONDS_TO_START}"]
    started = subprocess.Popen([*step, *worker, *options], env={**os.environ, **quiet, **environment})
    try:
        with distributed.Client(cluster) as client:
            _wait_for(client, started, num_workers)
            yield client
            client.retire_workers()  # else they are killed, which srun reports as a failure
    finally:
        cluster.close()
        try:
            started.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            started.terminate()
            started.wait()


def _wait_for(client: distributed.Client, started: subprocess.Popen[bytes], num_workers: int) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while len(client.scheduler_info(n_workers=-1)["workers"]) < num_workers:
        if started.poll() is not None:
            raise FastmixError(_WHERE, f"srun ended with exit code {started.returncode}", "see what it says above")
        if time.monotonic() > deadline:
            present = len(client.scheduler_info(n_workers=-1)["workers"])
            problem = f"{present} of {num_workers} workers started within {_SECONDS_TO_START} s"
            raise FastmixError(_WHERE, problem, "look at the nodes of the allocation, and whether they reach each other")
        time.sleep(0.2)
