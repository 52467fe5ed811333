"""Checkpoints of a search: the engine's files of every rank, the run's own state, and a pointer that is renamed last."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import MismatchError
from train.proxy.engine import ProxyEngine

_POINTER = "latest.json"
_STATE = "fastmix.json"
_TENSORS = "fastmix.pt"
_log = logging.getLogger(__name__)


def save_checkpoint(
    directory: Path, *, step: int, state: dict[str, Any], tensors: dict[str, Any], identity: dict[str, Any], engine: ProxyEngine
) -> None:
    """Write a checkpoint on all ranks; it counts once the pointer names it, and older ones go then.

    Args:
        state: JSON-able, the same on every rank.
        tensors: what is too large for JSON, the same on every rank.
        identity: what a run must have in common with this one to go on from it.
    """
    folder = directory / f"step-{step:08d}"
    if engine.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that died while writing
        folder.mkdir(parents=True)
    engine.barrier()
    engine.save(folder)
    torch.save(_random_state(), folder / f"random-{engine.rank:05d}.pt")
    engine.barrier()
    if engine.rank == 0:
        torch.save(tensors, folder / _TENSORS)
        write_json(folder / _STATE, state)
        write_json(directory / _POINTER, {"step": step, "folder": folder.name, "identity": identity})
        for other in directory.glob("step-*"):
            if other != folder:
                shutil.rmtree(other)
    engine.barrier()
    _log.info("checkpoint of step %d in %s", step, folder)


def load_checkpoint(directory: Path, *, identity: dict[str, Any], engine: ProxyEngine) -> dict[str, Any] | None:
    """Restore engine and random state from the newest checkpoint.

    Returns:
        The run's own state, with its large part as `tensors`; None if there is no checkpoint.
    """
    if not (directory / _POINTER).exists():
        return None
    check_checkpoint(directory, identity=identity)
    folder = directory / read_json(directory / _POINTER)["folder"]
    engine.load(folder)
    _log.info("goes on from %s", folder)
    _restore_random_state(torch.load(folder / f"random-{engine.rank:05d}.pt"))
    state: dict[str, Any] = read_json(folder / _STATE)
    return {**state, "tensors": torch.load(folder / _TENSORS, map_location="cpu")}


def check_checkpoint(directory: Path, *, identity: dict[str, Any]) -> None:
    """See that a checkpoint, if there is one, belongs to this run.

    Raises:
        MismatchError: it was made with another recipe, other data or another number of ranks.
    """
    if not (directory / _POINTER).exists():
        return
    saved = read_json(directory / _POINTER)["identity"]
    for name, value in identity.items():
        if saved.get(name) != value:
            what = f" (it was {saved.get(name)}, now {value})" if isinstance(value, int) else ""
            problem = f"a stopped search with another {name.replace('_', ' ')}{what} lies here"
            raise MismatchError(directory, problem, "go on with that one, or start afresh with --replace")


def _random_state() -> dict[str, torch.Tensor]:
    """Generators that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
