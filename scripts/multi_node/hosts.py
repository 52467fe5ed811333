"""Two hosts on one machine: network namespaces with names, an address each, and a veth pair between them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_HOSTS_FILE = Path("/etc/hosts")


@dataclass(frozen=True)
class Host:
    """A namespace; `name` is what processes in it see as the machine's."""

    name: str
    address: str
    interface: str

    def command(self, arguments: Sequence[object]) -> list[str]:
        """A command that runs there."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$1" && shift && exec "$@"', "sh", self.name]
        # `ip netns exec` would mount another /sys, in which slurmd finds no control groups.
        return ["nsenter", f"--net=/run/netns/{self.name}", *named, *map(str, arguments)]

    def set_link(self, state: str) -> None:
        """Put the interface up or down."""
        _run("ip", "-n", self.name, "link", "set", self.interface, state)

    @property
    def environment(self) -> dict[str, str]:
        """What a user has to set where a node has several interfaces."""
        return {"GLOO_SOCKET_IFNAME": self.interface, "NCCL_SOCKET_IFNAME": self.interface}

    def start(self, arguments: Sequence[object], *, log: Path, cwd: Path, **environment: str) -> subprocess.Popen[bytes]:
        """A process there, in a session of its own, with what it prints in a file."""
        variables = _clean(os.environ) | self.environment | environment
        with log.open("wb") as out:
            return subprocess.Popen(
                self.command(arguments), stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=variables, start_new_session=True
            )


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    ranks = ("MASTER_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC")
    kept = {name: value for name, value in environment.items() if not name.startswith(ranks)}
    return {"OMP_NUM_THREADS": "1", **kept}


def can_make_hosts() -> str:
    """Why hosts cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found"
    tried = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    return tried.stderr.strip()


@contextmanager
def two_hosts(prefix: str = "fastmix") -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other by name, for as long as the block; their names are in /etc/hosts meanwhile."""
    hosts = tuple(Host(f"{prefix}-{letter}", f"10.83.0.{n}", "eth0") for n, letter in ((1, "a"), (2, "b")))
    first, second = hosts
    before = _HOSTS_FILE.read_text()
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.name)
        ends = [("name", host.interface, "netns", host.name) for host in hosts]
        _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            inside = ("ip", "-n", host.name)
            _run(*inside, "addr", "add", f"{host.address}/24", "dev", host.interface)
            for interface in (host.interface, "lo"):
                _run(*inside, "link", "set", interface, "up")
        _HOSTS_FILE.write_text(before + "".join(f"{host.address} {host.name}\n" for host in hosts))
        yield first, second
    finally:
        _HOSTS_FILE.write_text(before)
        for host in hosts:
            pids = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                subprocess.run(["kill", "-KILL", pid], capture_output=True)
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
