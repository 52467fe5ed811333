"""A SLURM of its own on the two hosts: slurmctld on the first, slurmd on both."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hosts import Host

_PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue")
_SECONDS_TO_START = 60


def missing_for_slurm() -> str:
    """What is missing; empty where nothing is."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"{' and '.join(missing)} not found" if missing else ""


@contextmanager
def slurm_cluster(folder: Path, hosts: Sequence[Host], *, cpus: int = 2, gpus: int = 0) -> Iterator[dict[str, str]]:
    """A cluster of the hosts for as long as the block; what its commands need in their environment.

    Args:
        gpus: that each node claims to have; SLURM counts them, and nothing more.
    """
    folder.mkdir()
    (folder / "slurm.conf").write_text(_configuration(folder, hosts, cpus=cpus, gpus=gpus))
    (folder / "gres.conf").write_text(f"Name=gpu Count={gpus}\n" if gpus else "")
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    for name in ("state", *(f"spool-{host.name}" for host in hosts)):
        (folder / name).mkdir()
    daemons = [hosts[0].start(["slurmctld", "-D", "-i"], log=folder / "slurmctld.out", cwd=folder, **environment)]
    daemons += [
        host.start(["slurmd", "-D", "-N", host.name], log=folder / f"{host.name}.out", cwd=folder, **environment)
        for host in hosts
    ]
    try:
        _wait_until_idle(folder, hosts, environment)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _wait_until_idle(folder: Path, hosts: Sequence[Host], environment: dict[str, str]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        asked = hosts[0].start(["sinfo", "--noheader", "--format=%T %D"], log=folder / "sinfo.out", cwd=folder, **environment)
        asked.wait()
        told = (folder / "sinfo.out").read_text()
        if told.split() == ["idle", str(len(hosts))]:
            return
        if time.monotonic() > deadline:
            logs = "".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.out")))
            raise SystemExit(f"SLURM did not start:\n{told}{logs}")
        time.sleep(0.5)


def _configuration(folder: Path, hosts: Sequence[Host], *, cpus: int, gpus: int) -> str:
    gres = f" Gres=gpu:{gpus}" if gpus else ""
    nodes = "".join(
        f"NodeName={host.name} NodeHostname={host.name} NodeAddr={host.address} CPUs={cpus} RealMemory=4000{gres}\n"
        for host in hosts
    )
    return f"""\
ClusterName=fastmix
SlurmctldHost={hosts[0].name}({hosts[0].address})
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
JobRequeue=1
{"GresTypes=gpu" if gpus else ""}
{nodes}PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
