"""A search on two hosts, one rank on each, started as the documentation of each launcher says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hosts import Host
from slurm import missing_for_slurm, slurm_cluster

PORT = 29517


class Launcher(Protocol):
    """Starts `python -m train.search recipe.yaml` in a folder; what is printed goes to `log` there."""

    def __call__(self, folder: Path, hosts: tuple[Host, Host], *, timeout_s: float) -> int:
        """The exit code, of the worst host where there are several."""
        ...


def why_not(launcher: str) -> str:
    """What is missing for a launcher; empty where nothing is."""
    if launcher == "srun":
        return missing_for_slurm()
    needed = {"deepspeed": ("sshd", "ssh-keygen", "pdsh")}.get(launcher, ())
    missing = [name for name in needed if shutil.which(name) is None]
    return f"{' and '.join(missing)} not found" if missing else ""


def torchrun(
    folder: Path, hosts: tuple[Host, Host], *, timeout_s: float, options: Sequence[str] = ("recipe.yaml",), **environment: str
) -> int:
    """`torchrun` on each host."""
    processes = []
    for number, host in enumerate(hosts):
        where = ("--node-rank", number, "--master-addr", hosts[0].name, "--master-port", PORT)
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, *where]
        log = folder / f"log-{number}"
        processes.append(host.start([*command, "-m", "train.search", *options], log=log, cwd=folder, **environment))
    codes = [wait_for(process, timeout_s=timeout_s) for process in processes]
    (folder / "log").write_text("".join((folder / f"log-{number}").read_text() for number in range(2)))
    return max(codes, key=abs)


def deepspeed(folder: Path, hosts: tuple[Host, Host], *, timeout_s: float) -> int:
    """`deepspeed --hostfile` on the first host, which reaches both by ssh."""
    (folder / "hostfile").write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    # The launcher takes only some variables along; this file names the rest.
    (folder / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in hosts[0].environment.items()))
    with ssh_between(hosts, folder / "ssh") as path:
        launcher = Path(sys.executable).parent / "deepspeed"
        where = ("--hostfile", "hostfile", "--master_addr", hosts[0].address, "--master_port", PORT)
        command = [sys.executable, launcher, *where, "--module", "train.search", "recipe.yaml"]
        return wait_for(hosts[0].start(command, log=folder / "log", cwd=folder, PATH=path), timeout_s=timeout_s)


def srun(folder: Path, hosts: tuple[Host, Host], *, timeout_s: float) -> int:
    """`srun` over the two nodes of a SLURM of their own."""
    with slurm_cluster(folder / "slurm", hosts) as environment:
        step = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        command = [*step, sys.executable, "-m", "pipelines.cli", "search", "recipe.yaml"]
        return wait_for(hosts[0].start(command, log=folder / "log", cwd=folder, **environment), timeout_s=timeout_s)


LAUNCHERS: dict[str, Launcher] = {"torchrun": torchrun, "deepspeed": deepspeed, "srun": srun}


def wait_for(process: subprocess.Popen[bytes], *, timeout_s: float) -> int:
    """The exit code; 124 for a process that had to be killed."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return 124


@contextmanager
def ssh_between(hosts: Sequence[Host], folder: Path) -> Iterator[str]:
    """Servers on all hosts with keys of their own, and a PATH whose `ssh` knows them; nobody's ~/.ssh is touched."""
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    options = {
        "AuthorizedKeysFile": folder / "user_key.pub",
        "HostKey": folder / "host_key",
        "PermitRootLogin": "prohibit-password",
        "PidFile": "none",
        "StrictModes": "no",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    wrapper = folder / "bin" / "ssh"
    wrapper.parent.mkdir()
    known = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -i {folder / "user_key"} {known} "$@"\n')
    wrapper.chmod(0o755)
    servers = [
        host.start([shutil.which("sshd"), "-D", "-e", "-f", folder / "sshd_config"], log=folder / f"{host.name}.log", cwd=folder)
        for host in hosts
    ]
    try:
        time.sleep(1)
        yield f"{wrapper.parent}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    finally:
        for server in servers:
            server.terminate()
            server.wait(10)
