"""What each rank of a launched run prints, and how it ends, when something is wrong with one: real processes, gloo between them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = socket.gethostname()


@dataclass(frozen=True)
class Ended:
    code: int
    lines: list[str]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    """All runs at once: most of their time is waiting."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, Path(__file__).with_name("failing_ranks.py"), folder], check=True, timeout=120)
    found = json.loads((folder / "ended.json").read_text())
    return {name: [Ended(**rank) for rank in ranks] for name, ranks in found.items()}


def test_ranks_that_fit_meet_and_leave_in_silence(ended: dict[str, list[Ended]]) -> None:
    assert ended["all_well"] == [Ended(0, [])] * 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("two_missing", "ranks 2, 3 of 4: not there after 3 s; see the log of that node"),
        ("no_rank_0", f"{HOST} reaches no rank 0 there within 3 s ([Errno 111] Connection refused); see that rank's log"),
        ("port_in_use", "the port is in use"),
        ("rank_twice", "is that rank too; give each node its own --node-rank"),
        ("other_size", "start the launcher with the same number of nodes"),
        ("no_port", "MASTER_PORT=http: it is no port; give a number from 1"),
        ("no_size", "WORLD_SIZE: a number is needed, not ''; start ranks with torchrun"),
        (
            "another_recipe",
            f"rank 2 on {HOST}: its recipe is other, and that of rank 0 on {HOST} is one; start all ranks with the same",
        ),
        ("missing_shard", "shards/a.tar: there is no such file; copy it to this node"),
        ("missing_shard_while_others_compute", "shards/a.tar: there is no such file; copy it to this node"),
        ("wrong_key", "training.global_batch: it cannot be divided by 2; use 8"),
    ],
)
def test_a_mistake_is_told_by_whoever_sees_it_and_ends_all_ranks(ended: dict[str, list[Ended]], name: str, said: str) -> None:
    ranks = ended[name]
    assert [rank.code for rank in ranks] == [2] * len(ranks)
    assert all(len(rank.lines) <= 1 for rank in ranks), ranks
    assert any(said in line for rank in ranks for line in rank.lines), ranks


def test_what_all_ranks_find_is_told_by_the_first_alone(ended: dict[str, list[Ended]]) -> None:
    for name in ("another_recipe", "wrong_key"):
        assert [len(rank.lines) for rank in ended[name]] == [1, *[0] * (len(ended[name]) - 1)]


def test_others_name_the_rank_that_failed(ended: dict[str, list[Ended]]) -> None:
    for name in ("missing_shard", "missing_shard_while_others_compute"):
        first, second, *_ = ended[name]
        assert second.lines[0].startswith("error on rank 1: shards/a.tar")
        assert first.lines[0].endswith(f": rank 1 on {HOST}: it failed, and this rank stops too; see its line or log")


def test_a_fault_of_ours_has_its_traceback_and_ends_the_others_too(ended: dict[str, list[Ended]]) -> None:
    first, second = ended["fault_of_ours"]
    assert first.code == 1 and "ZeroDivisionError" in first.lines[-1]
    assert second.code == 2 and len(second.lines) == 1 and f"rank 0 on {HOST}" in second.lines[0]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_whose_peer_was_killed_names_it(ended: dict[str, list[Ended]], killed: int) -> None:
    ranks = ended[f"rank_{killed}_killed"]
    other = ranks[1 - killed]
    assert ranks[killed].code == -signal.SIGKILL and other.code == 2
    assert len(other.lines) == 1 and f"rank {killed} on {HOST}: it" in other.lines[0]
