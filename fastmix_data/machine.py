"""What this process may use of the machine, and which of several it is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def num_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: those that it may run on, and no more than its container's quota pays for.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Threads beyond the quota only use it up sooner, and then all of them stand still until the next period.
    return max(1, math.ceil(min(allowed, cpu_quota(root))))


def cpu_quota(root: Path = Path("/")) -> float:
    """Seconds of CPU time that the process's control groups grant in a second, the strictest of them; infinite without a limit."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    return min([math.inf, *(quota for membership in memberships for quota in _quotas(membership, root / "sys/fs/cgroup"))])


def _quotas(membership: str, mount: Path) -> Iterator[float]:
    """Limits of one line of /proc/self/cgroup, `id:controllers:path`; version 2 names no controllers."""
    _, controllers, path = membership.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    top = mount / controllers
    group = top / path.lstrip("/")
    # A limit counts for all groups below it. In a container the path is often the host's, of which only the top is mounted.
    for folder in (group, *group.parents):
        try:
            if controllers:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            else:
                quota, period = (folder / "cpu.max").read_text().split()
        except OSError:
            pass
        else:
            if quota != "max" and int(quota) > 0:  # -1 is version 1's word for no limit
                yield int(quota) / int(period)
        if folder == top:
            return


def let_waiting_threads_sleep() -> None:
    """Have threads of OpenMP that wait for the next piece of work give up their core after 10,000 looks, less than a millisecond.

    By default they look 300,000 times, all the while keeping other work, often the thread that they wait for, from that core. The
    library reads it once, when it is loaded: call this before torch is imported. Settings of the user's stand.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@dataclass(frozen=True)
class LaunchedRank:
    """Which rank this process is, of how many, in a run that torchrun or the deepspeed launcher started."""

    rank: int
    world_size: int


def launched_rank() -> LaunchedRank | None:
    """This process's rank, if a launcher started it: only launchers name a master's address."""
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        return None
    return LaunchedRank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


@dataclass(frozen=True)
class Workers:
    """Who does the work of a command.

    Attributes:
        num_workers: processes on this machine; None for one per core.
        scheduler: address of a running Dask cluster instead, which sees the same file system.
        quiet: whether nobody is to see the progress.
    """

    num_workers: int | None = None
    scheduler: str | None = None
    quiet: bool = False
