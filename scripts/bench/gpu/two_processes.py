"""`fastmix compare` with proxies in two processes, which share a GPU where there is one."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from planted import plan_planted
from row import ON_GPU, say
from zero_stages import BATCH, LENGTH, PROXY, SEARCH, TRAINING

from fastmix_data.machine import Workers
from pipelines.compare.run import compare

METHODS = "uniform,fastmix,doge,doremi"


def main() -> None:
    training = {**TRAINING, "token_budget": (80 if ON_GPU else 16) * BATCH * LENGTH}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_planted(Path(folder) / "run", num_blocks=256, proxy=PROXY, training=training, search=SEARCH)
        found = compare(plan, methods=METHODS, num_seeds=1, workers=Workers(num_workers=2, quiet=True)).comparison
    losses = {name: float(np.mean(method.target_loss)) for name, method in found.methods.items()}
    say(
        "fastmix compare, two processes on one device",
        f"{METHODS}; {training['token_budget'] // (BATCH * LENGTH)} steps",
        f"{time.monotonic() - started:.0f} s; target losses " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
        wanted="fastmix below uniform",
        ok=losses["fastmix"] < losses["uniform"] if ON_GPU else None,
    )


if __name__ == "__main__":
    main()
