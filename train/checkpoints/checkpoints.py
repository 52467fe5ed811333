"""Checkpoints of one proxy in training, on all ranks together: saved in the background, and gone on from by any number of ranks."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import orjson
import torch
import torch.distributed as dist
from torch import Tensor

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import CorruptArtefactError, FastmixError
from train.checkpoints.checkpoint_folder import (
    STATE_FILE,
    complete_checkpoints,
    damage,
    discard_all_but,
    folder_of,
    read_index,
    tensor_file,
    write_index,
)
from train.checkpoints.random_state import random_state, restore_random_state
from train.checkpoints.tensor_files import Runs, SavedTensors, WrittenFile, write_bytes, write_runs

SECONDS_BETWEEN = 300.0  # a copy to host memory is under a second of it, and a crash costs half of it on average
_STEPS_BETWEEN_LOOKS = 16
_log = logging.getLogger(__name__)
NUM_KEPT = 2  # the newest may turn out to be damaged


class Trained(Protocol):
    """A proxy under an optimiser, spread over ranks."""

    rank: int
    world_size: int

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over ranks, in place."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its collectives take their tensors from."""
        ...

    def runs(self) -> Runs:
        """This rank's runs of what training has moved; with those of the other ranks, all of it."""
        ...

    def counters(self) -> dict[str, float]:
        """What else the optimiser counts, the same on all ranks."""
        ...

    def restore(self, saved: SavedTensors, counters: Mapping[str, float]) -> None:
        """Go on where `runs` and `counters` were taken, on all ranks."""
        ...


@dataclass(frozen=True)
class CheckpointPlan:
    """Where the checkpoints of a proxy lie, and when they are made.

    Attributes:
        folder: of this proxy alone.
        identity: what a run must share with a checkpoint to go on from it.
        num_steps: between two of them; None for one every five minutes.
    """

    folder: Path
    identity: dict[str, Any]
    num_steps: int | None = None

    def of(self, **more: Any) -> CheckpointPlan:
        """The same with more of an identity."""
        return CheckpointPlan(self.folder, {**self.identity, **more}, self.num_steps)

    def discard(self) -> None:
        """Remove them: what they served is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Saved:
    """What a run of any number of ranks goes on with, beside the engine."""

    step: int
    state: dict[str, Any]
    tensors: SavedTensors


@dataclass
class _Save:
    """One checkpoint on its way to the disk, as far as this rank writes it."""

    step: int
    folder: Path
    files: dict[str, WrittenFile] = field(default_factory=dict)
    problem: str = ""
    thread: threading.Thread | None = None

    @property
    def is_pending(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Checkpoints:
    """Saves and restores one proxy; a context that does not end before this rank's files are written."""

    def __init__(self, plan: CheckpointPlan, engine: Trained) -> None:
        """Look at nothing yet."""
        self._plan, self._engine = plan, engine
        self._buffers: dict[str, Tensor] = {}
        self._save: _Save | None = None
        self._last_step, self._last_time = 0, time.monotonic()
        self.saved_step: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._save is not None and self._save.thread is not None:
            self._save.thread.join()

    @property
    def is_writing(self) -> bool:
        """Whether this rank has a checkpoint on its way to the disk."""
        return self._save is not None and self._save.is_pending

    def resume(self) -> Saved | None:
        """Restore engine and random state from the newest checkpoint that is whole; None if there is none of this identity."""
        for step, index in self._candidates():
            folder = folder_of(self._plan.folder, step)
            names = sorted(index["files"])
            # Each rank reads a part of the files: all of them would take as many times longer as there are ranks.
            mine = damage(folder, index["files"], names[self._engine.rank :: self._engine.world_size])
            found = next(filter(None, _from_all_ranks(mine)), "")
            if found:
                self._say(f"{folder}: {found}; it is removed, and the checkpoint before is used if there is one")
                if self._engine.rank == 0:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            tensors = SavedTensors([folder / name for name in names if name != STATE_FILE])
            content = read_json(folder / STATE_FILE)
            self._engine.restore(tensors, content["counters"])
            restore_random_state(tensors, rank=self._engine.rank, world_size=self._engine.world_size, step=step)
            self._last_step = self.saved_step = step
            _log.info("goes on from %s", folder)
            return Saved(step, content["run"], tensors)
        return None

    def looks_at(self, step: int) -> bool:
        """Whether `after_step` is to be called after a step, in a run that has no better moments of its own; ranks talk to each other."""
        return step % min(_STEPS_BETWEEN_LOOKS, self._plan.num_steps or _STEPS_BETWEEN_LOOKS) == 0

    def after_step(self, step: int, state: Callable[[], tuple[Any, Runs]]) -> None:
        """On every rank, now and then: see to a checkpoint that is being written, and begin one where it is time.

        Args:
            state: what the run itself adds: JSON-able and the same on all ranks, and this rank's runs of tensors.
        """
        is_due = self._is_due(step)
        if is_due and self._save is None:
            self._make_folder(step)
        due, pending = self._agree(is_due and self._engine.rank == 0)
        if self._save is not None and not pending:
            self._settle()
        elif self._save is None and due:
            self._begin(step, state)

    def save(self, step: int, state: Callable[[], tuple[Any, Runs]], *, stopping: bool = True) -> None:
        """On every rank: have a checkpoint of this step on the disk, whatever the time.

        Args:
            stopping: whether the run ends here for now, so that what is not on the disk is lost.

        Raises:
            FastmixError: the run is stopping and its state could not be written.
        """
        self.finish()
        if self.saved_step == step:
            return
        self._make_folder(step)
        self._agree(False)
        self._begin(step, state)
        problem = self.finish(quiet=stopping)
        if problem and stopping:
            begins = "starts again" if self.saved_step is None else f"goes on from step {self.saved_step}"
            raise FastmixError(
                folder_of(self._plan.folder, step),
                f"the state at step {step} could not be saved ({problem})",
                f"mend that and run the same command again, which {begins}",
            )

    def finish(self, *, quiet: bool = False) -> str:
        """Wait until the checkpoint on its way is written on every rank; returns why it is not, where it is not."""
        if self._save is None:
            return ""
        if self._save.thread is not None:
            self._save.thread.join()
        return self._settle(quiet=quiet)

    def _candidates(self) -> list[tuple[int, dict[str, Any]]]:
        """Steps and indices of checkpoints of this identity, as the first rank finds them; what is none is removed."""
        found: list[Any] = [[]]
        if self._engine.rank == 0:
            for folder in complete_checkpoints(self._plan.folder):
                try:
                    index = read_index(folder)
                except CorruptArtefactError as error:
                    self._say(f"{error.where}: {error.what}; it is removed, and the checkpoint before is used if there is one")
                    continue
                if index["identity"] == self._plan.identity:
                    found[0].append((index["step"], index))
            discard_all_but(self._plan.folder, [folder_of(self._plan.folder, step) for step, _ in found[0]])
        if self._engine.world_size > 1:
            dist.broadcast_object_list(found, src=0)
        candidates: list[tuple[int, dict[str, Any]]] = found[0]
        return candidates

    def _is_due(self, step: int) -> bool:
        if self._plan.num_steps is not None:
            return step - self._last_step >= self._plan.num_steps
        return time.monotonic() - self._last_time >= SECONDS_BETWEEN

    def _make_folder(self, step: int) -> None:
        """On the first rank, before the others are told to write there: an empty folder."""
        if self._engine.rank == 0:
            folder = folder_of(self._plan.folder, step)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # whoever writes there says why it cannot
                folder.mkdir(parents=True, exist_ok=True)

    def _agree(self, due: bool) -> tuple[bool, bool]:
        """Whether it is time by the first rank's clock, and whether any rank writes still."""
        counts = torch.tensor([float(due), float(self.is_writing)], device=self._engine.device)
        due_ranks, pending_ranks = self._engine.sum_over_ranks(counts).tolist()
        return due_ranks > 0, pending_ranks > 0

    def _begin(self, step: int, state: Callable[[], tuple[Any, Runs]]) -> None:
        """Copy what this rank keeps to host memory, and have it written while training goes on."""
        engine = self._engine
        of_run, own_runs = state()
        copied = self._in_host_memory({**engine.runs(), **own_runs, **random_state(engine.rank)})
        copy_done = torch.cuda.Event() if engine.device.type == "cuda" else None
        if copy_done is not None:
            copy_done.record()
        content = orjson.dumps({"run": of_run, "counters": engine.counters()}, option=orjson.OPT_SERIALIZE_NUMPY)
        self._save = save = _Save(step, folder_of(self._plan.folder, step))
        self._last_step, self._last_time = step, time.monotonic()

        def write() -> None:
            name = tensor_file(engine.rank)
            try:
                if copy_done is not None:
                    copy_done.synchronize()
                save.folder.mkdir(parents=True, exist_ok=True)
                save.files[name] = write_runs(save.folder / name, copied)
                if engine.rank == 0:
                    save.files[STATE_FILE] = write_bytes(save.folder / STATE_FILE, content)
                for written, file in save.files.items():
                    if (save.folder / written).stat().st_size != file.num_bytes:
                        raise OSError(f"{written} came out shorter than it was written")
            except OSError as error:
                save.problem = (error.strerror or str(error)).lower()
                for left in (name, STATE_FILE) if engine.rank == 0 else (name,):
                    (save.folder / left).unlink(missing_ok=True)

        save.thread = threading.Thread(target=write, name=f"checkpoint at step {step}", daemon=True)
        save.thread.start()

    def _in_host_memory(self, runs: Runs) -> Runs:
        """Copies that stand while training goes on; the same memory serves every checkpoint."""
        copied = {}
        for name, (first, values) in runs.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.numel() != values.numel():
                pinned = self._engine.device.type == "cuda"
                buffer = self._buffers[name] = torch.empty(values.numel(), dtype=values.dtype, pin_memory=pinned)
            copied[name] = first, buffer.copy_(values, non_blocking=True)
        return copied

    def _settle(self, *, quiet: bool = False) -> str:
        """Every rank is done: have the checkpoint count and older ones go, or remove what is there of it."""
        save, self._save = self._save, None
        assert save is not None
        outcomes = _from_all_ranks((save.files, save.problem))
        problem: str = next((problem for _, problem in outcomes if problem), "")
        if self._engine.rank == 0 and not problem:
            files = {name: file for of_rank, _ in outcomes for name, file in of_rank.items()}
            try:
                write_index(save.folder, step=save.step, identity=self._plan.identity, files=files)
            except (OSError, FastmixError) as error:
                problem = str(error.what if isinstance(error, FastmixError) else error.strerror).lower()
        problem = str(_from_all_ranks(problem)[0])
        if problem:
            if self._engine.rank == 0:
                shutil.rmtree(save.folder, ignore_errors=True)
            if not quiet:
                before = "there is none before it" if self.saved_step is None else f"the one of step {self.saved_step} is kept"
                self._say(f"{save.folder}: no checkpoint was written ({problem}); training goes on, and {before}")
            return problem
        self.saved_step = save.step
        _log.info("checkpoint of step %d in %s", save.step, save.folder)
        if self._engine.rank == 0:
            discard_all_but(self._plan.folder, complete_checkpoints(self._plan.folder)[:NUM_KEPT])
        return ""

    def _say(self, line: str) -> None:
        if self._engine.rank == 0:
            _log.info("%s", line)
            print(f"warning: {line}", file=sys.stderr, flush=True)


def _from_all_ranks(mine: Any) -> list[Any]:
    """What every rank gives, in their order."""
    if dist.get_world_size() == 1:
        return [mine]
    given: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(given, mine)
    return given
