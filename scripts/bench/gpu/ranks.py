"""A search on several ranks with NCCL between them, beside the same search on one; on CPU, two gloo ranks.

Each rank has a GPU of its own. On a machine with one, two ranks tell NCCL that they are two hosts, so that it lets them share the card
and sends everything over loopback: what is computed is the same, and the speed says nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from planted import plan_planted
from row import ON_GPU, mfu_of, say
from torch.multiprocessing.spawn import start_processes
from zero_stages import PROXY, SEARCH, TOLERANCE, TRAINING, at_stage, finds_target, largest_difference

from fastmix_data.results.mixture import load_mixture
from fastmix_data.workdir import SearchFolder
from train.ranks.facts import RankFacts
from train.ranks.meeting import Meeting
from train.search.plan import SearchPlan
from train.search.search import search

_MOST_RANKS = 4


def searched(plan: SearchPlan, *, num_ranks: int, shares_gpu: bool) -> tuple[dict[str, float], float]:
    """The answer, and trained tokens a second, starting of ranks included."""
    here = replace(plan, folder=SearchFolder(plan.folder.root.with_name(f"{plan.folder.root.name}-on-{num_ranks}")))
    started = time.perf_counter()
    if shares_gpu:
        with tempfile.TemporaryDirectory() as folder:
            start_processes(_rank_on_one_gpu, (here, num_ranks, str(Path(folder) / "store")), num_ranks, start_method="spawn")
    else:
        search(here, num_ranks=num_ranks, quiet=True)
    weights = load_mixture(here.folder.mixture).weights
    return weights, plan.proxy.training.num_tokens / (time.perf_counter() - started)


def _rank_on_one_gpu(rank: int, plan: SearchPlan, num_ranks: int, path: str) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    nccl = {"NCCL_HOSTID": f"host-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": 1}
    os.environ |= {name: str(value) for name, value in (numbers | nccl).items()}
    facts = tuple(RankFacts(number, 0, f"host-{number}", torch.cuda.device_count(), "", {}) for number in range(num_ranks))
    store, watched = (dist.FileStore(path, num_ranks) for _ in range(2))
    search(plan, launched=Meeting(rank, num_ranks, store, watched, facts, seconds=60), quiet=True)


def main() -> None:
    shares_gpu = torch.cuda.device_count() == 1
    num_ranks = min(_MOST_RANKS, torch.cuda.device_count()) if ON_GPU and not shares_gpu else 2
    with tempfile.TemporaryDirectory() as folder:
        # Ranks that share a GPU wait for each other's turn at it in every one of their many collectives.
        training = {**TRAINING, "token_budget": TRAINING["token_budget"] // 2} if shares_gpu else TRAINING
        plan = plan_planted(Path(folder) / "run", num_blocks=256, proxy=PROXY, training=training, search=SEARCH)
        for stage in (3, 1, 2) if shares_gpu else (1, 2, 3):
            here = at_stage(plan, stage, "bf16")
            alone, _ = searched(here, num_ranks=1, shares_gpu=False)
            together, speed = searched(here, num_ranks=num_ranks, shares_gpu=shares_gpu)
            difference = largest_difference(alone, together)
            say(
                f"search on {num_ranks} ranks{' that share one GPU' if shares_gpu else ''}, ZeRO {stage}, bf16",
                f"as under ZeRO above{', half as long' if shares_gpu else ''}, starting of ranks included",
                f"{speed:,.0f} tokens/s; mixture {difference:.1e} from one rank's",
                mfu=None if shares_gpu else mfu_of(here.main, speed, num_gpus=num_ranks),
                wanted=f"at most {TOLERANCE['bf16']:g}, the target's largest source first and noise last",
                ok=difference <= TOLERANCE["bf16"] and finds_target(together),
            )


if __name__ == "__main__":
    main()
