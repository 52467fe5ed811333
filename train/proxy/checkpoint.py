"""Checkpoints of a search: the engine's files of every rank, the run's own state, and a pointer that is renamed last."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import MismatchError
from train.proxy.engine import ProxyEngine

_POINTER = "latest.json"
_STATE = "fastmix.json"
_TENSORS = "tensors"  # of each rank
_log = logging.getLogger(__name__)


def save_checkpoint(
    directory: Path, *, step: int, state: dict[str, Any], tensors: dict[str, Any], identity: dict[str, Any], engine: ProxyEngine
) -> None:
    """Write a checkpoint on all ranks; it counts once the pointer names it, and older ones go then.

    Args:
        state: JSON-able, the same on every rank.
        tensors: what is too large for JSON, this rank's: a `weight`, and `shares`, of each parameter by name the first element's number
            and flat values. Shares that begin at 0 on every rank are whole ones, and the same.
        identity: what a run must have in common with this one to go on from it.
    """
    folder = directory / f"step-{step:08d}"
    if engine.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that died while writing
        folder.mkdir(parents=True)
    engine.barrier()
    engine.save(folder)
    torch.save(_random_state(), folder / f"random-{engine.rank:05d}.pt")
    own = {name: (first, part) for name, (first, part) in tensors["shares"].items() if engine.rank == 0 or (first and len(part))}
    torch.save({**tensors, "shares": own}, folder / f"{_TENSORS}-{engine.rank:05d}.pt")
    engine.barrier()
    if engine.rank == 0:
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
        The run's own state, with its large part as `tensors`: the `weight`, and as `sums` the whole flat values of each parameter by name.
        None if there is no checkpoint.
    """
    if not (directory / _POINTER).exists():
        return None
    check_checkpoint(directory, identity=identity)
    folder = directory / read_json(directory / _POINTER)["folder"]
    engine.load(folder)
    _log.info("goes on from %s", folder)
    _restore_random_state(torch.load(folder / f"random-{engine.rank:05d}.pt"))
    state: dict[str, Any] = read_json(folder / _STATE)
    # Mapped, not read: each rank takes its shares out of the files of all.
    parts = [torch.load(path, map_location="cpu", mmap=True) for path in sorted(folder.glob(f"{_TENSORS}-*.pt"))]
    return {**state, "tensors": {"weight": parts[0]["weight"], "sums": put_together([part["shares"] for part in parts])}}


def put_together(shares: Sequence[dict[str, tuple[int, Tensor]]]) -> dict[str, Tensor]:
    """Whole flat values of each parameter by name from all ranks' shares, each of which names its first element."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, part in chain.from_iterable(share.items() for share in shares):
        found.setdefault(name, []).append(part)
    return {name: torch.cat([values for _, values in sorted(parts, key=lambda part: part[0])]) for name, parts in found.items()}


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
