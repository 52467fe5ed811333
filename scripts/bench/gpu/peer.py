"""Our training beside `transformers` with DeepSpeed in a loop by hand over the same tokens, plain and compiled, at four sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from plain_training import Setting, paired, prepared
from row import ON_GPU, mfu_of, say

from train.proxy.engine import process_group

_LEAST_SPEED = 0.97


@dataclass(frozen=True)
class Row:
    """A proxy, and how long it is looked at."""

    size: str
    stage: int
    num_steps: int
    rounds: int


ROWS = (
    [
        Row("100M", 3, 16, 3),
        Row("1B", 1, 12, 1),
        Row("100M", 1, 16, 3),
        Row("10M", 1, 32, 3),
        Row("100M", 2, 16, 2),
        Row("300M", 1, 16, 2),
    ]
    if ON_GPU
    else [Row("0.5M", 1, 4, 1)]
)


def measure(row: Row) -> None:
    """Lines of the table."""
    setting = Setting(
        row.size, row.stage, "bf16" if ON_GPU else "fp32", row.num_steps, row.rounds, compile=ON_GPU and row.stage < 3
    )
    with prepared(setting) as (plan, start, flat):
        taken = paired(plan, start, flat, setting, scores=False)
    training = plan.proxy.training
    speeds = training.tokens_per_step * row.num_steps / np.median(taken, axis=0)
    ratio = float(np.median(taken[:, 1] / taken[:, 0]))
    where = f"llama of {row.size}, {training.global_batch} x {training.sequence_length}, ZeRO {row.stage}, {setting.precision}"
    say(
        "plain training, tokens/s of ours / of transformers with DeepSpeed",
        where,
        f"{ratio:.3f}; {speeds[0]:,.0f} and {speeds[1]:,.0f}",
        mfu=mfu_of(plan.proxy, float(speeds[0])),
        wanted=f"at least {_LEAST_SPEED}",
        ok=ratio >= _LEAST_SPEED if ON_GPU else None,
    )
    if setting.compile:
        share = float(np.median(taken[:, 2] / taken[:, 0]))
        say("training.compile: true / plain, time", where, f"{share:.3f}", mfu=mfu_of(plan.proxy, float(speeds[2])))


def main() -> None:
    with process_group(rank=0, world_size=1):
        for row in ROWS:
            measure(row)


if __name__ == "__main__":
    main()
