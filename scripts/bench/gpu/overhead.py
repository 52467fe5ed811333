"""What scoring costs beside plain training: the median over rounds of one step's time with scores over one without."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from row import ON_GPU, mfu_of, peak, reset_peak, say
from search_overhead import VOCABULARY, make_catalog, make_plan, paired_times

from fastmix_data.shards.catalog import Catalog
from train.proxy.engine import process_group
from train.search.search import build_run
from train.search.start import counted_start

PROXIES: dict[str, dict[str, Any]] = {
    "10 M": {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 688},
    "100 M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
SETTINGS: dict[str, tuple[int, int, int]] = {"10 M": (128, 512, 8), "100 M": (32, 1024, 4)}  # batch, length, rounds
if not ON_GPU:
    PROXIES = {"tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}}
    SETTINGS = {"tiny": (8, 64, 1)}


def measure(size: str, catalog: Catalog) -> None:
    """A row of the table."""
    batch, length, rounds = SETTINGS[size]
    plan = make_plan(
        catalog,
        proxy={"model_type": "llama", **PROXIES[size]},
        training={"global_batch": batch, "sequence_length": length},
        search={"target_batch": batch // 2, "initial_weights": "uniform"},  # as in the default recipe, half of the batch
    )
    reset_peak()
    run, engine, _ = build_run(plan, 1, start=counted_start(plan))
    pairs = list(paired_times(run.search_step, run.plain_step, times=plan.search.update_interval, rounds=rounds))
    num_parameters, memory = engine.num_parameters, peak()
    engine.close()
    low, median, high = np.percentile([searching / plain for searching, plain in pairs], [25, 50, 75])
    step = float(np.median([plain for _, plain in pairs])) / plan.search.update_interval
    speed = plan.proxy.training.tokens_per_step / step
    say(
        "scored search / plain training, median of paired rounds",
        f"llama of {num_parameters / 1e6:.0f} M, vocabulary {VOCABULARY}, {batch} x {length}, {len(catalog.sources)} sources",
        f"{median:.3f} ({low:.3f} to {high:.3f}); plain {1000 * step:.1f} ms a step, {speed:,.0f} tokens/s{memory}",
        mfu=mfu_of(plan.main, speed),
    )


def main() -> None:
    with process_group(rank=0, world_size=1):
        for num_sources in (8, 512 if ON_GPU else 32):
            with tempfile.TemporaryDirectory() as folder:
                catalog = make_catalog(Path(folder), num_sources)
                for size in PROXIES:
                    measure(size, catalog)


if __name__ == "__main__":
    main()
