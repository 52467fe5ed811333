"""Memory of the card that training and scoring take, beside what is foreseen of it, in passes as `micro_batch: auto` makes them too."""

from __future__ import annotations

from dataclasses import replace

from memory import foreseen_points, highest_points, plan_of
from row import ON_GPU, gib, say

from train.memory.fitting_batch import device_memory, with_fitting_batch
from train.proxy.engine import process_group
from train.proxy.training import ProxyPlan

_MOST_OVER = 1.05  # of what is foreseen
# Millions of parameters, sequences, ZeRO stages.
SHAPES = [(100, 16, (1, 2, 3)), (300, 8, (1, 3)), (1000, 4, (1, 3))] if ON_GPU else [(10, 1, (1, 3))]
AUTO = (300, 128)  # millions, sequences that a rank may take at once


def measure(plan: ProxyPlan, what: str, *, num_parameters: int) -> None:
    """A row of the table."""
    foreseen, found = foreseen_points(plan, num_ranks=1), highest_points(plan)
    ratios = [measured / expected for measured, expected in zip(found, foreseen, strict=True)]
    (training, scoring), (trained, scored) = map(gib, foreseen), map(gib, found)
    say(
        what,
        f"llama of {num_parameters} M, passes of {plan.training.micro_batch} x {plan.training.sequence_length}, "
        f"ZeRO {plan.deepspeed.zero_stage}, {plan.training.precision}",
        f"training {trained} of {training} ({ratios[0]:.3f}), scoring {scored} of {scoring} ({ratios[1]:.3f})",
        wanted=f"at most {_MOST_OVER}",
        ok=max(ratios) <= _MOST_OVER,
    )


def main() -> None:
    with process_group(rank=0, world_size=1):
        for millions, num_sequences, stages in SHAPES:
            for stage in stages:
                plan = plan_of(millions, stage=stage, num_ranks=1, precision="bf16", num_sequences=num_sequences)
                measure(plan, "memory taken / foreseen", num_parameters=millions)
        if ON_GPU:
            millions, share = AUTO
            plan = plan_of(millions, stage=1, num_ranks=1, precision="bf16", num_sequences=share)
            open_plan = replace(plan, training=plan.training.model_copy(update={"micro_batch": "auto", "global_batch": share}))
            fitted = with_fitting_batch(open_plan, num_ranks=1, ranks_on_machine=1, is_scored=True, remembers=True)
            measure(fitted, f"the same with micro_batch: auto on {gib(device_memory())}", num_parameters=millions)


if __name__ == "__main__":
    main()
