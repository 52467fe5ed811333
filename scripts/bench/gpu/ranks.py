"""A search on several ranks, each with a GPU of its own and NCCL between them, beside the same search on one; on CPU, two gloo ranks."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from planted import BLEND, SOURCES, plan_planted
from row import ON_GPU, mfu_of, say
from zero_stages import PROXY, SEARCH, TOLERANCE, TRAINING, at_stage, largest_difference

from fastmix_data.workdir import SearchFolder
from train.search.plan import SearchPlan
from train.search.search import search

_MOST_RANKS = 4


def searched(plan: SearchPlan, *, num_ranks: int) -> tuple[dict[str, float], float]:
    """The answer, and trained tokens a second, starting of ranks included."""
    here = replace(plan, folder=SearchFolder(plan.folder.root.with_name(f"{plan.folder.root.name}-on-{num_ranks}")))
    started = time.perf_counter()
    weights = search(here, num_ranks=num_ranks, quiet=True).mixture.weights
    return weights, plan.proxy.training.num_tokens / (time.perf_counter() - started)


def main() -> None:
    num_ranks = min(_MOST_RANKS, torch.cuda.device_count()) if ON_GPU else 2
    if num_ranks < 2:
        say("search on several ranks", "", "not run: this machine has one GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_planted(Path(folder) / "run", num_blocks=256, proxy=PROXY, training=TRAINING, search=SEARCH)
        for stage in (1, 2, 3):
            here = at_stage(plan, stage, "bf16")
            alone, _ = searched(here, num_ranks=1)
            together, speed = searched(here, num_ranks=num_ranks)
            difference = largest_difference(alone, together)
            in_order = sorted(SOURCES, key=lambda name: -together[name]) == [*BLEND, "noise"]
            say(
                f"search on {num_ranks} ranks, ZeRO {stage}, bf16",
                "as under ZeRO above, starting of ranks included",
                f"{speed:,.0f} tokens/s; mixture {difference:.1e} from one rank's",
                mfu=mfu_of(here.main, speed, num_gpus=num_ranks),
                wanted=f"at most {TOLERANCE['bf16']:g}, sources in the target's order",
                ok=difference <= TOLERANCE["bf16"] and in_order,
            )


if __name__ == "__main__":
    main()
