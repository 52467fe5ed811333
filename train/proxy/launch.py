"""Starting the ranks of one machine as processes, and bringing their errors home."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from fastmix_data.errors import FastmixError
from fastmix_data.machine import let_waiting_threads_sleep, num_cores

_SECONDS_BETWEEN_LOOKS, _SECONDS_TO_END = 1.0, 5.0


def launch_ranks(work: Callable[..., None], *arguments: Any, num_ranks: int) -> None:
    """Run `work(*arguments, rank, world_size, rendezvous)` in `num_ranks` processes and wait for them.

    The cores are divided over the ranks, unless OMP_NUM_THREADS says otherwise.

    Raises:
        FastmixError: there are too few GPUs, or as the first rank that failed raised it.
    """
    if torch.cuda.is_available():
        check_gpus(num_ranks, num_gpus=torch.cuda.device_count())
    let_waiting_threads_sleep()
    errors: SimpleQueue[FastmixError] = mp.get_context("spawn").SimpleQueue()
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, num_cores() // num_ranks))
    try:
        with tempfile.TemporaryDirectory(prefix="fastmix-ranks-") as folder:
            rendezvous = f"file://{Path(folder) / 'rendezvous'}"
            context = start_processes(
                _run_rank, (work, arguments, num_ranks, rendezvous, errors), nprocs=num_ranks, join=False, start_method="spawn"
            )
            assert context is not None
            _join(context, errors)
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]


def check_gpus(num_ranks: int, *, num_gpus: int) -> None:
    """Refuse ranks that would share a GPU, which NCCL cannot connect.

    Raises:
        FastmixError: says how many there can be.
    """
    if num_ranks > num_gpus:
        problem = f"each rank needs a GPU of its own, and this machine has {num_gpus}"
        raise FastmixError(f"--nproc {num_ranks}", problem, f"use --nproc {num_gpus}")


def _join(context: Any, errors: SimpleQueue[FastmixError]) -> None:
    def pass_on(number: int, _: object) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    # Ranks that are told to stop save their state and end; until then the parent waits. Ctrl-C reaches them by itself, what SLURM
    # and `kill` send reaches only the parent.
    answers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: pass_on, signal.SIGUSR1: pass_on}
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    try:
        # Ranks that lost another one end by themselves, or, where NCCL has them wait for it, are ended after twice the grace period.
        # Python answers a signal between two waits where the system gave it to another thread than this one.
        while not context.join(timeout=_SECONDS_BETWEEN_LOOKS, grace_period=_SECONDS_TO_END):
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if not errors.empty():
            raise errors.get() from None
        killed = _killed_rank(context, first=error)
        if killed is None:
            raise
        raise killed from None
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


def _killed_rank(context: Any, *, first: ProcessExitedException | ProcessRaisedException) -> FastmixError | None:
    """The error for a rank that a signal ended, as where memory ran out; None if there is none.

    Args:
        first: of the rank that was seen to end first, which may be one that only lost touch with the killed one.
    """
    ranks = [first.error_index, *(rank for rank in range(len(context.processes)) if rank != first.error_index)]
    for rank in ranks:
        code = context.processes[rank].exitcode
        if code is not None and code < 0 and -code != signal.SIGTERM:
            name, remedy = signal.Signals(-code).name, "run the same command again, which goes on from the last checkpoint"
            hint = "see whether memory ran out (dmesg), and " if -code == signal.SIGKILL else ""
            return FastmixError(f"rank {rank}", f"it was ended by {name}, and the others stopped", hint + remedy)
    return None


def _run_rank(
    rank: int,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    world_size: int,
    rendezvous: str,
    errors: SimpleQueue[FastmixError],
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    try:
        work(*arguments, rank, world_size, rendezvous)
    except FastmixError as error:
        errors.put(error)
        sys.exit(2)
