"""Generators that dropout draws from, as tensors of a checkpoint."""

from __future__ import annotations

import torch

from fastmix_data.atomic_files import hash_of
from train.checkpoints.tensor_files import Runs, SavedTensors


def random_state(rank: int) -> Runs:
    """Of this rank's generators, which no other rank has."""
    state = {f"random-{rank}-cpu": (0, torch.get_rng_state())}
    return state | ({f"random-{rank}-cuda": (0, torch.cuda.get_rng_state())} if torch.cuda.is_available() else {})


def restore_random_state(saved: SavedTensors, *, rank: int, world_size: int, step: int) -> None:
    """Have generators go on where they were; where there were other ranks, start new ones that the step and the rank fix."""
    if f"random-{world_size - 1}-cpu" not in saved or f"random-{world_size}-cpu" in saved:
        torch.manual_seed(int(hash_of(["random", step, rank, world_size])[:15], 16))
        return
    torch.set_rng_state(saved[f"random-{rank}-cpu"])
    if torch.cuda.is_available() and f"random-{rank}-cuda" in saved:
        torch.cuda.set_rng_state(saved[f"random-{rank}-cuda"])
