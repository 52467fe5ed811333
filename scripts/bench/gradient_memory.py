"""Bytes that scoring takes on each rank, and its time beside plain training, at each ZeRO stage.

    python scripts/bench/gradient_memory.py [--ranks 1 2] [--stages 0 1 2 3] [--sources 8] [--rounds 3]

One copy is the proxy's parameters in float32. Bytes are over what was there before the first scored step: at most during that and the
second, each a target gradient that is remembered and turned into Adam's metric and a scored pass, and after them. They are those of the
C library's allocator on rank 0, of a proxy whose activations are small beside its parameters (2 x 16 tokens), and of which embedding and
head are 28% each. The ratio is of processor time, search over plain training: median and range over rounds of a scored step beside
the plain steps around it, which search_overhead.py has in wall time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from search_overhead import PROXY, make_catalog, make_plan
from torch.utils._python_dispatch import TorchDispatchMode

from train.proxy.engine import process_group
from train.proxy.launch import launch_ranks
from train.scores import parameter_shares
from train.search.plan import SearchPlan
from train.search.search import build_run
from train.search.start import counted_start

WIDE = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688}


def at_stage(plan: SearchPlan, stage: int) -> SearchPlan:
    """The same search under another ZeRO stage."""
    return replace(plan, proxy=replace(plan.proxy, deepspeed=plan.proxy.deepspeed.model_copy(update={"zero_stage": stage})))


class Mallinfo2(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def allocated_bytes() -> int:
    """What glibc has given out in this process."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


class Peak(TorchDispatchMode):
    """Looks at what is allocated after every operation within the block, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.most = allocated_bytes()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.most = max(self.most, allocated_bytes())
        return result


def peak_and_rest(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that are allocated during some work, at most at a time, and that are left after it."""
    gc.collect()
    before = allocated_bytes()
    with Peak() as peak:
        work()
    gc.collect()
    return peak.most - before, allocated_bytes() - before


def memory(root: Path, stage: int, world_size: int) -> str:
    """The two columns of bytes, in copies of the parameters."""
    small = {"global_batch": 2 * world_size, "sequence_length": 16, "micro_batch": 2, "precision": "fp32"}
    search = {"update_interval": 1, "target_batch": 2 * world_size}
    plan = at_stage(make_plan(make_catalog(root / "memory", 2), proxy=WIDE, training=small, search=search), stage)
    run, engine, _ = build_run(plan, world_size, start=counted_start(plan))
    run.plain_step()
    copy = 4 * engine.num_parameters
    parameter_shares._BUCKET_ELEMENTS = engine.num_parameters // 64  # as of a proxy of 1 B parameters

    def scored_steps() -> None:
        for _ in range(2):
            run._take_target_gradient()
            run._score_sources()

    peak, kept = peak_and_rest(scored_steps)
    engine.close()
    return f"{peak / copy:.2f} | {kept / copy:.2f}"


def overhead(root: Path, stage: int, world_size: int, num_sources: int, rounds: int) -> str:
    """The ratio of a search to plain training."""
    plan = at_stage(make_plan(make_catalog(root / f"overhead{num_sources}", num_sources), proxy=PROXY), stage)
    run, engine, _ = build_run(plan, world_size, start=counted_start(plan))

    def scored_step() -> None:
        target_loss = run._take_target_gradient()
        run._score_sources()
        run._update(target_loss, stop_asked=False)

    ratios = []
    for _ in range(rounds + 1):  # the first warms up
        before, scored, after = (processor_seconds(step) for step in (run.plain_step, scored_step, run.plain_step))
        ratios.append(1 + 2 * scored / (before + after) / plan.search.update_interval)
    engine.close()
    return f"{np.median(ratios[1:]):.3f} ({min(ratios[1:]):.3f} to {max(ratios[1:]):.3f})"


def processor_seconds(work: Callable[[], object]) -> float:
    """What this process computes, whatever else the machine does meanwhile."""
    started = time.process_time()
    work()
    return time.process_time() - started


def work(stages: list[int], sources: list[int], rounds: int, rank: int, world_size: int, rendezvous: str) -> None:
    """A line of the table for each stage, printed by the first of these ranks."""
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous), tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            root = Path(folder) / str(stage)
            cells: list[Any] = [world_size, stage, memory(root, stage, world_size)]
            cells += [overhead(root, stage, world_size, number, rounds) for number in sources if rounds]
            if rank == 0:
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--sources", type=int, nargs="+", default=[8])
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with plain training; 0 leaves it out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = [f"search / plain, K = {number}" for number in options.sources if options.rounds]
    header = ["ranks", "ZeRO", "copies at most", "copies kept", *ratios]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|", flush=True)
    for num_ranks in options.ranks:
        launch_ranks(work, options.stages, options.sources, options.rounds, num_ranks=num_ranks)


if __name__ == "__main__":
    main()
