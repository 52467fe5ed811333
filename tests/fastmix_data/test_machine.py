"""Cores are counted by affinity and by the quota of the process's control groups, read from files as the kernel writes them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastmix_data.machine import cpu_quota, num_cores

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
