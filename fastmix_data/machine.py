"""What this process may use of the machine, and which of several it is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastmix_data.errors import FastmixError

_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM's numbers of batch scripts and the like


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
    quotas = [math.inf]
    for folder, is_version_2 in _control_groups("cpu", root):
        with suppress(OSError):
            if is_version_2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:  # -1 is version 1's word for no limit
                quotas.append(int(quota) / int(period))
    return min(quotas)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that are free, and no more than the process's control groups may take.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    amounts = [next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))]
    for folder, is_version_2 in _control_groups("memory", root):
        with suppress(OSError):
            limit = (folder / ("memory.max" if is_version_2 else "memory.limit_in_bytes")).read_text().strip()
            if limit != "max":
                amounts.append(int(limit))
    return min(amounts)


def _control_groups(controller: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of the process's control groups and of those above them, and whether they are of version 2."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        # `id:controllers:path`; version 2 names no controllers.
        _, controllers, path = membership.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        # A limit counts for all groups below it. In a container the path is often the host's, of which only the top is mounted.
        for folder in (group, *group.parents):
            yield folder, not controllers
            if folder == top:
                break


def let_waiting_threads_sleep() -> None:
    """Have threads of OpenMP that wait for the next piece of work give up their core after 10,000 looks, less than a millisecond.

    By default they look 300,000 times, all the while keeping other work, often the thread that they wait for, from that core. The
    library reads it once, when it is loaded: call this before torch is imported. Settings of the user's stand.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@dataclass(frozen=True)
class LaunchedRank:
    """Which rank this process is, of how many, in a run that torchrun, the deepspeed launcher or srun started.

    Attributes:
        local_rank: its number among those of this machine.
        launcher: the command that users know it by.
    """

    rank: int
    world_size: int
    local_rank: int
    launcher: str


def launched_rank(environment: Mapping[str, str] = os.environ) -> LaunchedRank | None:
    """This process's rank, if a launcher started it; a step of SLURM with one task is no run of ranks.

    Raises:
        FastmixError: the launcher's variables are incomplete, or no ranks.
    """
    # Only launchers name a master's address. Torchrun started by srun has the last word: its variables are the process's own.
    if "MASTER_ADDR" in environment and "RANK" in environment:
        names, launcher = (
            ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed",
        )
    elif _is_task_of_srun(environment):
        names, launcher = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"), "srun"
    else:
        return None
    rank, world_size, local_rank = (_number(environment, name) for name in names)
    if not rank < world_size:
        problem = f"there are {world_size} ranks, numbered from 0 ({names[1]})"
        raise FastmixError(f"{names[0]}={rank}", problem, "start ranks with torchrun, deepspeed or srun, which set both")
    return LaunchedRank(rank, world_size, local_rank, launcher)


def prepare_rank(launched: LaunchedRank) -> None:
    """Set what torch reads when it is loaded, where the user has not: threads for a task of srun, as torchrun sets them for its own.

    Torch's warnings of each attempt to connect are off; what comes of the attempts is told as one line.
    """
    if launched.launcher == "srun":
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _is_task_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process beside others. A batch script, and a shell of salloc, are steps with numbers from the top."""
    step, tasks = environment.get("SLURM_STEP_ID", ""), environment.get("SLURM_STEP_NUM_TASKS", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP and tasks.isdecimal() and int(tasks) > 1


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        problem = f"a number is needed, not {value!r}" if name in environment else "it is not set, though this process is a rank"
        raise FastmixError(name, problem, "start ranks with torchrun, deepspeed or srun, which set it")
    return int(value)


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
