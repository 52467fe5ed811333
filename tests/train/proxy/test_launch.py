"""Ranks of one machine: what is refused before any is started, and what reaches them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fastmix_data.errors import FastmixError
from train.proxy.launch import check_gpus, launch_ranks


def test_more_ranks_than_gpus_are_refused_with_the_number_that_can_be() -> None:
    check_gpus(2, num_gpus=2)
    with pytest.raises(FastmixError, match=r"--nproc 3.* has 2.*use --nproc 2"):
        check_gpus(3, num_gpus=2)


def wait_for_signals(folder: Path, rank: int, world_size: int, rendezvous: str) -> None:
    heard: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: heard.append(number))
    (folder / f"ready-{rank}").touch()
    deadline = time.monotonic() + 60
    while len(heard) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder / f"heard-{rank}").write_text(str(sorted(heard)))


def test_a_wish_to_stop_reaches_every_rank(tmp_path: Path) -> None:
    """SLURM and `kill` know the process that started the ranks, and no other."""

    def ask() -> None:
        for rank in range(2):
            while not (tmp_path / f"ready-{rank}").exists():
                time.sleep(0.01)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    launch_ranks(wait_for_signals, tmp_path, num_ranks=2)
    asking.join()
    assert [(tmp_path / f"heard-{rank}").read_text() for rank in range(2)] == ["[10, 15]"] * 2
