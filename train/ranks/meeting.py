"""Where the ranks of a launched run meet before anything else: a store that rank 0, or torchrun, keeps at the master's address."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from fastmix_data.errors import FastmixError, PeerError
from fastmix_data.machine import LaunchedRank
from fastmix_data.messages import first_line
from train.ranks.facts import RankFacts, check_facts, own_facts, set_own_variables

_SECONDS = "FASTMIX_RENDEZVOUS_SECONDS"
_MOST_NAMED, _LONGEST_VALUE = 8, 12
FAILED = "failed"
_SECONDS_BETWEEN_ATTEMPTS = 0.5


@dataclass(frozen=True)
class Meeting:
    """All ranks of a run, as one of them sees it.

    Attributes:
        store: seen by all ranks; keys are this run's alone.
        watched: another connection to it, for the thread that watches: a rank that waits keeps its own busy.
        facts: of each rank; empty until all are there.
        seconds: to wait for others.
    """

    rank: int
    world_size: int
    store: Store
    watched: Store
    facts: tuple[RankFacts, ...]
    seconds: float

    def exchange(self, topic: str, mine: Any) -> list[Any]:
        """What each rank has to say on a topic; all ranks call this, in the same order of topics.

        Raises:
            PeerError: a rank failed meanwhile.
            FastmixError: ranks are missing after `seconds`; names them.
        """
        self.store.set(f"{topic}/{self.rank}", json.dumps(mine))
        names = [f"{topic}/{rank}" for rank in range(self.world_size)]
        deadline, pause = time.monotonic() + self.seconds, max(0.05, self.world_size / 1000)
        while not self.store.check(names):
            self.check_failed()
            if time.monotonic() > deadline:
                raise self._missing([rank for rank, name in enumerate(names) if not self.store.check([name])])
            time.sleep(pause)
        return [json.loads(said) for said in self.store.multi_get(names)]

    @property
    def group_store(self) -> Store:
        """Keys for torch's process group."""
        return PrefixStore("group", self.store)

    def check_failed(self) -> None:
        """Stop where another rank has.

        Raises:
            PeerError: names it.
        """
        if self.store.check([FAILED]):
            raise peer_error(json.loads(self.store.get(FAILED)))

    def agree(self, mine: Mapping[str, str]) -> None:
        """Refuse ranks that would train different things, or that do not see the same files.

        Args:
            mine: what must be equal, by the words that a message has for it.

        Raises:
            FastmixError: names the first rank that differs, the same on every rank.
        """
        said_R = self.exchange("agreed", dict(mine))
        for facts, said in zip(self.facts, said_R, strict=True):
            for what, value in said_R[0].items():
                if said[what] != value:
                    problem = (
                        f"its {what} is {said[what][:_LONGEST_VALUE]}, and that of {self.facts[0]} is {value[:_LONGEST_VALUE]}"
                    )
                    raise FastmixError(facts, problem, "start all ranks with the same recipe and options, on a shared workdir")

    def _missing(self, missing: list[int]) -> FastmixError:
        named = ", ".join(map(str, missing[:_MOST_NAMED])) + (", ..." if len(missing) > _MOST_NAMED else "")
        where = f"rank{'s' if len(missing) > 1 else ''} {named} of {self.world_size}"
        hosts = f" ({', '.join(sorted({self.facts[rank].host for rank in missing}))})" if self.facts else ""
        problem = f"not there after {self.seconds:g} s{hosts}"
        return FastmixError(where, problem, f"see the log of that node, and whether it reaches the master's address ({_SECONDS})")


def peer_error(failed: Mapping[str, Any]) -> PeerError:
    """What a rank says when another has failed."""
    return PeerError(
        f"rank {failed['rank']} on {failed['host']}",
        f"{failed.get('what', 'it failed')}, and this rank stops too",
        "see its line or log",
    )


def open_meeting(launched: LaunchedRank) -> Meeting:
    """A meeting of which this rank has found the store, and knows nobody yet.

    Raises:
        FastmixError: the address does not work.
    """
    seconds = float(os.environ.get(_SECONDS, "300"))
    set_own_variables(launched)
    address, port = master_address(launched)
    connect = _Connection(address, port, seconds)
    keeps = launched.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = connect.open(keeps=keeps)
    # Torchrun may start the ranks again, and finds the keys of the first time in its store.
    prefix = f"fastmix/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    own, watched = PrefixStore(prefix, store), PrefixStore(prefix, connect.open(keeps=False))
    return Meeting(launched.rank, launched.world_size, own, watched, (), seconds)


def meet(meeting: Meeting, launched: LaunchedRank) -> Meeting:
    """Wait for all ranks of a run, and refuse what cannot work; all ranks call this together.

    Raises:
        FastmixError: ranks are missing, or do not fit together.
    """
    facts = own_facts(launched)
    _check_number(meeting, facts)
    facts_R = tuple(RankFacts(**said) for said in meeting.exchange("facts", asdict(facts)))
    check_facts(facts_R)
    # Torchrun alone says how many ranks share a machine's memory and cache.
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(sum(each.host == facts.host for each in facts_R)))
    return replace(meeting, facts=facts_R)


def _check_number(meeting: Meeting, facts: RankFacts) -> None:
    """Refuse a rank that is there twice, or that was told another number of ranks."""
    store, mine = meeting.store, f"{facts.host} (process {os.getpid()})"
    taken = store.compare_set(f"process/{meeting.rank}", "", mine).decode()
    if taken != mine:
        problem = f"{taken} is that rank too"
        raise FastmixError(facts, problem, "give each node its own --node-rank, and each run a port of its own")
    told = store.compare_set("world_size", "", str(meeting.world_size)).decode()
    if told != str(meeting.world_size):
        problem = f"it was told of {meeting.world_size} ranks, and others of {told}"
        raise FastmixError(facts, problem, "start the launcher with the same number of nodes and processes on each node")


def master_address(launched: LaunchedRank) -> tuple[str, int]:
    """Host and port at which ranks meet, as the launcher has them; those of srun are worked out from the step's nodes.

    Raises:
        FastmixError: the nodes of a step cannot be read, or the port is none.
    """
    port = os.environ.get("MASTER_PORT", "29500")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise FastmixError(f"MASTER_PORT={port}", "it is no port", "give a number from 1 to 65535, or leave it to the launcher")
    if launched.launcher != "srun":
        return os.environ["MASTER_ADDR"], int(port)
    address = os.environ.get("MASTER_ADDR") or _first_host(os.environ["SLURM_STEP_NODELIST"])
    if "MASTER_PORT" in os.environ:
        return address, int(port)
    return address, step_port(int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"]))


def step_port(job: int, step: int) -> int:
    """A port for each step of each job, below those that systems hand out for connections.

    >>> step_port(1234, 0), step_port(1234, 1)
    (13234, 13331)
    """
    return 12000 + (job + 97 * step) % 20000


def _first_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        problem = f"`{' '.join(command)}` does not name the step's hosts ({first_line(error)})"
        raise FastmixError("SLURM", problem, "set MASTER_ADDR to the host of the first task") from error


@dataclass(frozen=True)
class _Connection:
    """The master's address, and how long to try it."""

    address: str
    port: int
    seconds: float

    def open(self, *, keeps: bool) -> TCPStore:
        """A connection to the store; the rank that keeps it opens it for all.

        Raises:
            FastmixError: the port is in use, or nobody answers.
        """
        where, host = f"{self.address}:{self.port}", socket.gethostname()
        if not keeps:
            self._reach(where, host)
        timeout = timedelta(seconds=self.seconds)
        try:
            return TCPStore(self.address, self.port, is_master=keeps, timeout=timeout, wait_for_workers=False)
        except (dist.DistError, RuntimeError) as error:
            if keeps and "EADDRINUSE" in str(error):
                remedy = "another run or a left-over process listens there; give the launcher another --master-port (MASTER_PORT)"
                raise FastmixError(where, f"the port is in use on {host}", remedy) from error
            problem = f"{host} finds no run of ranks there ({first_line(error)})"
            raise FastmixError(where, problem, "see the log of rank 0; give each run a port of its own (MASTER_PORT)") from error

    def _reach(self, where: str, host: str) -> None:
        """Wait until something listens there. Torch would wait too, and tell each attempt and nothing of the reason."""
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                socket.create_connection((self.address, self.port), timeout=max(1.0, deadline - time.monotonic())).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    problem = f"{host} reaches no rank 0 there within {self.seconds:g} s ({first_line(error)})"
                    remedy = "see that rank's log, whether the name leads to its node, and whether a firewall closes the port"
                    raise FastmixError(where, problem, f"{remedy} ({_SECONDS})") from error
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
