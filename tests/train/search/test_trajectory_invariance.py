"""The trajectory of a search does not depend on how it is spread: over ranks, ZeRO stages and passes of gradient accumulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fastmix_data.recipe.file import load_recipe
from train.proxy.launch import launch_ranks
from train.search.search import _run_launched, search

GLOBAL_BATCH, SEQUENCE_LENGTH = 16, 32
SEARCH = {
    "token_budget": GLOBAL_BATCH * SEQUENCE_LENGTH * 16,
    "update_interval": 2,
    "weights_warmup_steps": 4,
    "prior": "bigram",  # counted by one rank for all
    "prior_strength": 0.1,
}
SOURCES = ("noise", "same", "masked")

Spread = tuple[int, int, int]  # ranks, ZeRO stage, passes of one optimiser step on a rank
REFERENCE: Spread = (1, 0, 1)
SPREADS: tuple[Spread, ...] = (
    REFERENCE,
    (1, 1, 4),
    (1, 2, 1),
    (1, 3, 1),
    (2, 0, 1),
    (2, 1, 4),
    (2, 2, 1),
    (2, 3, 4),
    (4, 3, 4),
)

# Every run computes the same sums of the same float32 numbers, in another order and cut at other places. Rounding is 6e-8 of a sum;
# forward, backward and 16 optimiser steps, each starting from the rounding of the last, were measured to make at most 4e-7 of it. A
# sequence drawn twice, lost or weighted wrongly on one rank shows at 1e-3 or more.
TOLERANCE = 1e-5


def search_one_after_another(paths: list[Path], rank: int, world_size: int, rendezvous: str) -> None:
    """One rank of all searches that have this number of ranks; a process has one process group, which serves them all."""
    for path in paths:
        _run_launched(load_recipe(path), False, True, rank, world_size, rendezvous)


def write_recipe(planted_recipe: Callable[..., Path], spread: Spread) -> Path:
    ranks, zero_stage, passes = spread
    name = f"ranks{ranks}-zero{zero_stage}-passes{passes}"
    path = planted_recipe(name=name, sources=SOURCES, micro_batch=GLOBAL_BATCH // ranks // passes, **SEARCH)
    with path.open("a") as file:
        file.write(f"deepspeed: {{zero_stage: {zero_stage}}}\n")
    return path


def columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path.with_suffix("") / "search" / "trajectory.parquet")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_ranks_zero_stage_and_accumulation_leave_every_row_of_the_trajectory_as_it_is(
    planted_recipe: Callable[..., Path],
) -> None:
    paths = {spread: write_recipe(planted_recipe, spread) for spread in SPREADS}
    for ranks in (2, 4):
        launch_ranks(search_one_after_another, [path for spread, path in paths.items() if spread[0] == ranks], num_ranks=ranks)
    for spread, path in paths.items():
        if spread[0] == 1:
            search(load_recipe(path), quiet=True)
    expected = columns(paths[REFERENCE])
    assert len(expected["step"]) == 6 and np.ptp(expected["weights"], axis=0).min() > 0.02  # the mixture does move
    for spread, path in paths.items():
        found = columns(path)
        assert np.array_equal(found["step"], expected["step"]) and np.array_equal(found["tokens"], expected["tokens"])
        for name in ("weights", "scores", "train_loss", "target_loss"):
            scale = np.abs(expected[name]).max()
            assert np.allclose(found[name], expected[name], rtol=0, atol=TOLERANCE * scale), (spread, name)
