"""What goes wrong on several nodes, made to happen on two hosts: what each rank says of it, and after how long it ends."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from folders import copied
from hosts import Host
from launchers import PORT, wait_for

from fastmix_data.workdir import Workdir

_TIMEOUT_S = 240
_SECONDS_TO_MEET = "45"


@dataclass(frozen=True)
class Rank:
    """How a rank is started, beside what all have in common."""

    rank: int
    host: int
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Ranks that cannot come to an end.

    Attributes:
        when_training: what happens to the second host's rank, or to its cable, once the search tells of its progress.
        said: what one of them must say.
    """

    ranks: tuple[Rank, ...]
    said: str
    world_size: int = 2
    when_training: Literal["", "kill", "cut"] = ""


@dataclass(frozen=True)
class Outcome:
    """How it went."""

    name: str
    codes: list[int]
    lines: list[list[str]]
    seconds: float
    said: str
    hosts: list[str]

    @property
    def is_fine(self) -> bool:
        """Whether each rank ended by itself, with a line at most, and one of them said what is wrong."""
        wanted = all(code == 2 or (code == -9 and not lines) for code, lines in zip(self.codes, self.lines, strict=True))
        return (
            wanted
            and all(len(lines) <= 1 for lines in self.lines)
            and any(self.said in line for lines in self.lines for line in lines)
        )

    def text(self) -> str:
        """For the terminal."""
        head = f"{self.name}: exit codes {', '.join(map(str, self.codes))} after {self.seconds:.0f} s{'' if self.is_fine else '  WRONG'}"
        return "\n".join(
            [head, *(f"  {host}  {line}" for host, lines in zip(self.hosts, self.lines, strict=True) for line in lines)]
        )


_FIRST, _SECOND = Rank(0, 0), Rank(1, 1)
_LONG = ("--set", "training.token_budget=10M")
FAULTS = {
    "a rank is missing": Fault((_FIRST,), "rank 1 of 2: not there after"),
    "rank 0 is missing": Fault((_SECOND,), "reaches no rank 0 there within"),
    "the port is in use": Fault((_FIRST, Rank(0, 0)), "the port is in use on fastmix-a"),
    "a batch that three ranks cannot divide": Fault((_FIRST, _SECOND, Rank(2, 1)), "training.global_batch", world_size=3),
    "--nproc beside a launcher": Fault((Rank(0, 0, ("--nproc", "2")), Rank(1, 1, ("--nproc", "2"))), "give the number to the launcher"),
    "another version on one node": Fault((_FIRST, Rank(1, 1, environment={"PYTHONPATH": "other:"})), "it has fastmix 9.9"),
    "another recipe on one node": Fault((_FIRST, Rank(1, 1, ("--set", "training.seed=7"))), "rank 1 on fastmix-b: its recipe is"),
    "one node without the shards": Fault((_FIRST, Rank(1, 1, ("--set", "workdir=nothing-here"))), "error on rank 1: "),
    "one node without one of the shards": Fault((_FIRST, Rank(1, 1, ("--set", "workdir=other-run"))), "error on rank 1: "),
    "a rank is killed": Fault((Rank(0, 0, _LONG), Rank(1, 1, _LONG)), "rank 1 on fastmix-b: it is gone", when_training="kill"),
    "a cable is cut": Fault((Rank(0, 0, _LONG), Rank(1, 1, _LONG)), "fastmix-b: it has not been heard of for", when_training="cut"),
}  # fmt: skip


def run_fault(name: str, corpus: Path, hosts: tuple[Host, Host]) -> Outcome:
    """Start the ranks as a launcher does, and wait for their end."""
    fault, folder = FAULTS[name], copied(corpus, name.replace(" ", "-"))
    _prepare_other_node(folder)
    started, processes = time.monotonic(), []
    for place, rank in enumerate(fault.ranks):
        launcher = {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": PORT, "RANK": rank.rank, "WORLD_SIZE": fault.world_size}
        environment = {key: str(value) for key, value in launcher.items()} | {"LOCAL_RANK": "0"}
        environment |= {"FASTMIX_RENDEZVOUS_SECONDS": _SECONDS_TO_MEET} | rank.environment
        command = [sys.executable, "-m", "pipelines.cli", "search", "recipe.yaml", *rank.options]
        if "PYTHONPATH" in rank.environment:
            environment["PYTHONPATH"] = f"{folder / 'other'}:{':'.join(sys.path)}"
        processes.append(hosts[rank.host].start(command, log=folder / f"log-{place}", cwd=folder, **environment))
    if fault.when_training:
        while "search: " not in (folder / "log-0").read_text() and time.monotonic() - started < _TIMEOUT_S:
            time.sleep(0.2)
        started = time.monotonic()
        if fault.when_training == "kill":
            processes[1].kill()
        else:
            hosts[1].set_link("down")
    codes = [wait_for(process, timeout_s=_TIMEOUT_S) for process in processes]
    seconds = time.monotonic() - started
    hosts[1].set_link("up")
    lines = [_lines(folder / f"log-{place}") for place in range(len(processes))]
    return Outcome(name, codes, lines, seconds, fault.said, [hosts[rank.host].name for rank in fault.ranks])


def _lines(log: Path) -> list[str]:
    """What a rank printed, but for the progress of the search."""
    return [line for line in log.read_text().splitlines() if line.strip() and not line.startswith("search: ")]


def _prepare_other_node(folder: Path) -> None:
    """What the second node may have instead: a workdir that lacks a shard, and metadata of another fastmix."""
    other = Workdir(folder / "other-run")
    shutil.copytree(folder / "run", other.root)
    next(path for path in sorted(other.shards.rglob("*.tar")) if "train" in path.name).unlink()
    metadata = folder / "other" / "fastmix-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: fastmix\nVersion: 9.9\n")
