"""Jobs on Dask: results in order, progress told in full, the first error stops the rest, and nothing of Dask's on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import distributed
import pytest

from fastmix_data.errors import FastmixError, InputError
from pipelines.cluster import dask_client, run_on_cluster


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    with dask_client(num_workers=1, in_process=True) as client:
        yield client


def _count(job: int, tell: Callable[[int], None], *, seconds: float, log: Path) -> int:
    with log.open("a") as file:
        file.write(f"{job}\n")
    for _ in range(job):
        time.sleep(seconds)
        tell(1)
    if job == 3:
        raise InputError("job 3", "is a bad one", "leave it out")
    return 10 * job


def test_results_are_in_order_and_progress_is_told_on_the_way_and_in_full(client: distributed.Client, tmp_path: Path) -> None:
    told: list[int] = []
    came: list[int] = []
    jobs = [4, 0, 1, 2]
    results = run_on_cluster(
        client, _count, jobs, advance=told.append, on_result=came.append, remedy="x", seconds=0.3, log=tmp_path / "log"
    )
    assert results == [40, 0, 10, 20] and sorted(came) == sorted(results)
    assert sum(told) == sum(jobs)
    assert sum(amount > 0 for amount in told) > 3, "the longest job tells before it ends"


def test_the_first_error_stops_the_rest(client: distributed.Client, tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [3, *[1] * 50]
    with pytest.raises(InputError, match=r"^job 3: is a bad one; leave it out$"):
        run_on_cluster(client, _count, jobs, advance=lambda amount: None, remedy="x", seconds=0.05, log=log)
    assert len(log.read_text().splitlines()) < len(jobs)


def _die(job: int, tell: Callable[[int], None]) -> None:
    os._exit(1)


def test_a_worker_that_is_killed_again_and_again_is_one_line_with_a_remedy() -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        dask_client(num_workers=1) as client,
        pytest.raises(FastmixError, match=r"^a worker was killed .*; use fewer --workers, or smaller cats$") as caught,
    ):
        run_on_cluster(client, _die, [0], advance=lambda amount: None, remedy="smaller cats")
    assert "\n" not in str(caught.value)


_SECOND = """
from pipelines.cluster import dask_client
if __name__ == "__main__":
    with dask_client(num_workers=1) as client:
        print(client.submit(sum, [1, 2]).result())
"""


def test_a_second_cluster_on_the_machine_says_nothing() -> None:
    # If 8787 is taken already, by whomever, this cluster warns and the test is as good.
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:8787"):
        done = subprocess.run([sys.executable, "-c", _SECOND], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
