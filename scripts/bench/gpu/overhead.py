"""What scoring costs beside plain training: the median over rounds of one step's time with scores over one without."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from plain_training import SIZES
from row import ON_GPU, mfu_of, peak, reset_peak, say
from search_overhead import VOCABULARY, make_catalog, make_plan, paired_times

from train.proxy.engine import process_group
from train.search.search import build_run
from train.search.start import counted_start

_MOST = 1.10


@dataclass(frozen=True)
class Row:
    """A proxy, its sources, and how often both ways are timed."""

    size: str
    num_sources: int
    rounds: int
    compile: bool = False


ROWS = (
    [
        Row("100M", 8, 4),
        Row("1B", 8, 2),
        Row("100M", 8, 3, compile=True),
        Row("100M", 512, 2),
        Row("10M", 8, 4),
        Row("300M", 8, 2),
    ]
    if ON_GPU
    else [Row("0.5M", 8, 1), Row("0.5M", 32, 1)]
)


def measure(row: Row) -> None:
    """A row of the table."""
    shape, batch, length = SIZES[row.size]
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(
            make_catalog(Path(folder), row.num_sources),
            proxy={"model_type": "llama", **shape},
            training={"global_batch": batch, "sequence_length": length, "compile": row.compile},
            # As in the default recipe, half of the batch.
            search={"target_batch": max(2, batch // 2), "initial_weights": "uniform"},
        )
        reset_peak()
        run, engine, _ = build_run(plan, 1, start=counted_start(plan))
        pairs = list(paired_times(run.search_step, run.plain_step, times=plan.search.update_interval, rounds=row.rounds))
        num_parameters, memory = engine.num_parameters, peak()
        engine.close()
    low, median, high = np.percentile([searching / plain for searching, plain in pairs], [25, 50, 75])
    step = float(np.median([plain for _, plain in pairs])) / plan.search.update_interval
    speed = plan.proxy.training.tokens_per_step / step
    say(
        f"search that scores / plain training, time{', training.compile: true' if row.compile else ''}",
        f"llama of {num_parameters / 1e6:.0f} M, vocabulary {VOCABULARY}, {batch} x {length}, {row.num_sources} sources",
        f"{median:.3f} ({low:.3f} to {high:.3f}); plain {1000 * step:.1f} ms a step, {speed:,.0f} tokens/s{memory}",
        mfu=mfu_of(plan.main, speed),
        wanted="" if row.compile else f"at most {_MOST:.2f}",
        ok=median < _MOST + 0.005 if ON_GPU and not row.compile else None,
    )


def main() -> None:
    with process_group(rank=0, world_size=1):
        for row in ROWS:
            measure(row)


if __name__ == "__main__":
    main()
