"""Cores are counted by affinity and by the quota of the process's control groups, read from files as the kernel writes them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastmix_data.errors import FastmixError
from fastmix_data.machine import LaunchedRank, cpu_quota, free_memory, launched_rank, num_cores

V2_GROUP, V1_GROUP = "sys/fs/cgroup/pod/box", "sys/fs/cgroup/cpu,cpuacct/docker/box"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/pod/box", {f"{V2_GROUP}/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/pod/box", {f"{V2_GROUP}/cpu.max": "max 100000\n"}, math.inf),
        # The limit of the group above is the stricter one.
        ("0::/pod/box", {f"{V2_GROUP}/cpu.max": "400000 100000", "sys/fs/cgroup/pod/cpu.max": "50000 100000"}, 0.5),
        # In a container without a namespace of its own: the host's path, of which only the top is mounted.
        ("0::/docker/4f2a", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            "3:memory:/x\n2:cpu,cpuacct:/docker/box\n0::/",
            {f"{V1_GROUP}/cpu.cfs_quota_us": "250000\n", f"{V1_GROUP}/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("1:cpu:/", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("1:cpuset:/\n0::/", {}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_the_strictest_quota_of_the_own_control_groups_counts(
    tmp_path: Path, membership: str | None, files: dict[str, str], expected: float
) -> None:
    if membership is not None:
        files = files | {"proc/self/cgroup": membership + "\n"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_quota(tmp_path) == expected
    affinity = len(os.sched_getaffinity(0))
    assert num_cores(tmp_path) == min(affinity, affinity if expected == math.inf else math.ceil(expected))


def test_a_container_has_no_more_memory_than_it_is_granted(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert free_memory(tmp_path) == 5000 * 1024
    (tmp_path / "proc" / "self" / "cgroup").write_text("5:memory:/job\n0::/\n")
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    limit = tmp_path / "sys" / "fs" / "cgroup" / "memory.max"
    limit.write_text("max\n")
    assert free_memory(tmp_path) == 5000 * 1024
    limit.write_text("1000000\n")
    assert free_memory(tmp_path) == 1_000_000
    # Of a job's own group, as a scheduler sets it.
    (tmp_path / "sys" / "fs" / "cgroup" / "memory" / "job").mkdir(parents=True)
    (tmp_path / "sys" / "fs" / "cgroup" / "memory" / "job" / "memory.limit_in_bytes").write_text("700000\n")
    assert free_memory(tmp_path) == 700_000


def test_this_machine_has_at_least_a_core() -> None:
    assert 1 <= num_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("settings", "count"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_a_command_has_openmp_spin_little_unless_the_user_says_otherwise(settings: dict[str, str], count: str) -> None:
    """What OpenMP says itself when torch loads it."""
    code = "from pipelines.cli.main import main; main(['recipe', '--schema'], standalone_mode=False); import torch"
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = {**others, **settings, "OMP_DISPLAY_ENV": "verbose"}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{count}'" in finished.stderr


TORCHRUN = {"MASTER_ADDR": "a", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0", "SLURM_NTASKS": "3"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, LaunchedRank(3, 4, 1, "torchrun")),
        (SRUN, LaunchedRank(2, 3, 0, "srun")),
        (SRUN | TORCHRUN, LaunchedRank(3, 4, 1, "torchrun")),  # srun starts torchrun, which starts ranks
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SRUN | {"SLURM_STEP_ID": "4294967291"}, None),  # the batch script itself
        ({name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}, None),
    ],
)
def test_a_launcher_is_known_by_its_variables(environment: dict[str, str], expected: LaunchedRank | None) -> None:
    assert launched_rank(environment) == expected


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE: a number is needed, not 'two'; start ranks with torchrun"),
        ({"RANK": "4"}, r"RANK=4: there are 4 ranks, numbered from 0 \(WORLD_SIZE\)"),
    ],
)
def test_variables_that_make_no_rank_are_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(FastmixError, match=said):
        launched_rank(TORCHRUN | wrong)
