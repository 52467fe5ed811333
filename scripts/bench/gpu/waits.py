"""Where a step has the CPU wait for the GPU: none of it in our code, outside scored steps."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from plain_training import SIZES
from row import ON_GPU, say
from search_overhead import make_catalog, make_plan

import fastmix_data
from train.proxy.engine import process_group
from train.search.search import build_run
from train.search.start import counted_start

_OURS = Path(fastmix_data.__file__).parents[1]


def waits_of(step: Callable[[], object]) -> Counter[str]:
    """Lines that waited while it ran, and how often each."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing" in str(warning.message):
            path = Path(warning.filename)
            found[f"{path.relative_to(_OURS) if path.is_relative_to(_OURS) else path.name}:{warning.lineno}"] += 1
    return found


def main() -> None:
    if not ON_GPU:
        say("waits for the GPU", "", "not run: there is none")
        return
    shape, batch, length = SIZES["10M"]
    with tempfile.TemporaryDirectory() as folder, process_group(rank=0, world_size=1):
        plan = make_plan(
            make_catalog(Path(folder), 8),
            proxy={"model_type": "llama", **shape},
            training={"global_batch": batch, "sequence_length": length},
            search={"initial_weights": "uniform"},
        )
        run, _, _ = build_run(plan, 1, start=counted_start(plan))
        interval = plan.search.update_interval
        for _ in range(2 * interval):
            run.search_step()
        plain, scored = Counter[str](), Counter[str]()
        for _ in range(interval):
            before = len(run.trajectory.rows)
            found = waits_of(run.search_step)
            (scored if len(run.trajectory.rows) > before else plain).update(found)
        ours = {where: count for where, count in plain.items() if "train/" in where or "fastmix_data/" in where}
        listed = ", ".join(f"{where} {count}" for where, count in sorted(plain.items())) or "none"
        say(
            "lines that wait for the GPU outside scored steps",
            f"{interval - 1} steps, ZeRO {plan.proxy.deepspeed.zero_stage}, bf16",
            f"{listed}; at the scored step {sum(scored.values())}",
            wanted="none of ours",
            ok=not ours,
        )


if __name__ == "__main__":
    main()
