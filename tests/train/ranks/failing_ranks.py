"""Run by test_failing_ranks.py in a process of its own: ranks as a launcher starts them, of many runs at once, and how each of them ended.

A process of its own, because torch reads how much it is to say when it is loaded.
"""

from __future__ import annotations

import os
import sys

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import json
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from fastmix_data.errors import InputError, RecipeError
from pipelines.cli.options import command
from pipelines.console import Console
from train.proxy.engine import process_group
from train.ranks.meeting import Meeting

SECONDS = 60
SHORT = {"FASTMIX_RENDEZVOUS_SECONDS": "3"}  # for ranks that wait for nobody; others may be slow to come


def sum_for_ever(meeting: Meeting) -> None:
    """Add up over all ranks, again and again, as a search does."""
    with process_group(rank=meeting.rank, world_size=meeting.world_size, rendezvous=meeting.group_store):
        while True:
            dist.all_reduce(torch.ones(1))
            time.sleep(0.01)


def all_well(meeting: Meeting) -> None:
    meeting.agree({"recipe": "one"})
    assert os.environ["LOCAL_WORLD_SIZE"] == str(meeting.world_size)
    with process_group(rank=meeting.rank, world_size=meeting.world_size, rendezvous=meeting.group_store):
        assert dist.get_world_size() == meeting.world_size


def another_recipe_on_rank_2(meeting: Meeting) -> None:
    meeting.agree({"recipe": "one" if meeting.rank < 2 else "other"})


def missing_shard_on_rank_1(meeting: Meeting) -> None:
    if meeting.rank == 1:
        raise InputError("shards/a.tar", "there is no such file", "copy it to this node")
    sum_for_ever(meeting)


def missing_shard_while_others_compute(meeting: Meeting) -> None:
    if meeting.rank == 1:
        raise InputError("shards/a.tar", "there is no such file", "copy it to this node")
    time.sleep(SECONDS)


def wrong_key_everywhere(meeting: Meeting) -> None:
    time.sleep(0.3 if meeting.rank == 0 else 0.0)
    raise RecipeError("training.global_batch", "it cannot be divided by 2", "use 8")


def fault_of_ours_on_rank_0(meeting: Meeting) -> None:
    with process_group(rank=meeting.rank, world_size=meeting.world_size, rendezvous=meeting.group_store):
        if meeting.rank == 0:
            raise ZeroDivisionError
        dist.barrier()


def rank_0_killed(meeting: Meeting) -> None:
    killed(meeting, rank=0)


def rank_1_killed(meeting: Meeting) -> None:
    killed(meeting, rank=1)


def killed(meeting: Meeting, *, rank: int) -> None:
    with process_group(rank=meeting.rank, world_size=meeting.world_size, rendezvous=meeting.group_store):
        for step in range(10**9):
            if step == 200 and meeting.rank == rank:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.all_reduce(torch.ones(1))
            time.sleep(0.01)


@dataclass(frozen=True)
class Case:
    """A run: ranks that are started, the number of ranks that each is told of, and a command's work."""

    work: Callable[[Meeting], None] = sum_for_ever
    ranks: tuple[int, ...] = (0, 1)
    sizes: tuple[int, ...] = (2, 2)
    port_is_taken: bool = False
    environment: dict[str, str] = field(default_factory=dict)


CASES = {
    "all_well": Case(all_well, (0, 1, 2), (3, 3, 3)),
    "two_missing": Case(sum_for_ever, sizes=(4, 4), environment=SHORT),
    "no_rank_0": Case(sum_for_ever, (1,), (2,), environment=SHORT),
    "port_in_use": Case(sum_for_ever, (0,), (2,), port_is_taken=True),
    "rank_twice": Case(sum_for_ever, (0, 1, 1), (3, 3, 3)),
    "other_size": Case(sum_for_ever, sizes=(2, 3)),
    "no_port": Case(sum_for_ever, environment={"MASTER_PORT": "http"}),
    "no_size": Case(sum_for_ever, environment={"WORLD_SIZE": ""}),
    "another_recipe": Case(another_recipe_on_rank_2, (0, 1, 2), (3, 3, 3)),
    "missing_shard": Case(missing_shard_on_rank_1, (0, 1, 2), (3, 3, 3)),
    "missing_shard_while_others_compute": Case(missing_shard_while_others_compute),
    "wrong_key": Case(wrong_key_everywhere),
    "fault_of_ours": Case(fault_of_ours_on_rank_0),
    "rank_0_killed": Case(rank_0_killed),
    "rank_1_killed": Case(rank_1_killed),
}


def main(folder: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        ports = [taken.getsockname()[1] if case.port_is_taken else free_port() for case in CASES.values()]
        started = {name: start(case, folder / name, port) for (name, case), port in zip(CASES.items(), ports, strict=True)}
        ended = {}
        for name, processes in started.items():
            for process in processes:
                process.join(SECONDS)
            logs = [(folder / f"{name}-{place}").read_text().splitlines() for place in range(len(processes))]
            ended[name] = [{"code": process.exitcode, "lines": log} for process, log in zip(processes, logs, strict=True)]
            for process in processes:
                process.kill()
    (folder / "ended.json").write_text(json.dumps(ended))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port


def start(case: Case, log: Path, port: int) -> list[BaseProcess]:
    context, processes = multiprocessing.get_context("fork"), []
    for place, (rank, size) in enumerate(zip(case.ranks, case.sizes, strict=True)):
        launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
        environment = {name: str(value) for name, value in launcher.items()} | case.environment
        processes.append(context.Process(target=one_rank, args=(case.work, environment, log.with_name(f"{log.name}-{place}"))))
        processes[-1].start()
    return processes


def one_rank(body: Callable[[Meeting], None], environment: dict[str, str], log: Path) -> None:
    with log.open("w") as out:
        os.dup2(out.fileno(), 2)
    os.environ |= environment
    torch.set_num_threads(1)

    def work(console: Console, meeting: Meeting) -> None:
        body(meeting)

    command(work, on_ranks=True)(as_json=False, debug=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
