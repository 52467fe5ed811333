"""Proxies trained on fixed mixtures, kept by what decides them, so that swarms and confirmations are shared by all targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.atomic_files import PARTIAL_SUFFIX, fsync_directory, hash_of, read_json, write_json
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.machine import num_cores
from fastmix_data.shards.sequences import Half
from fastmix_data.workdir import RunFolder, Workdir
from train.checkpoints.checkpoints import CheckpointPlan
from train.memory.fitting_batch import with_fitting_batch
from train.proxy.training import ProxyPlan, train_on_mixture
from train.target.target import target_losses

_FORMAT_VERSION = 2
OnTokens = Callable[[int], None]


def short_hash(identity: dict[str, Any]) -> str:
    """Name of the folder or file of what has this identity."""
    return hash_of(identity)[:20]


def on_a_worker(plan: ProxyPlan) -> ProxyPlan:
    """A plan with passes as large as one worker's part of the memory holds."""
    return with_fitting_batch(plan, num_ranks=1, ranks_on_machine=num_cores())


def training_identity(plan: ProxyPlan) -> dict[str, Any]:
    """Everything but mixture and seed that decides a proxy; a rest of the budget that makes no step does not."""
    return {
        "format": _FORMAT_VERSION,
        "data": plan.catalog.fingerprint,
        "proxy": plan.proxy.model_dump(mode="json"),
        "share_seen": plan.share_seen,
        "training": plan.training.model_dump(mode="json", exclude={"seed", "token_budget"}),
        "num_steps": plan.training.num_steps,
    }


@dataclass(frozen=True)
class ProxyResult:
    """A trained proxy's cost and losses."""

    num_tokens: int
    seconds: float
    losses: dict[str, float]


@dataclass(frozen=True)
class ProxyJob:
    """Train a proxy on a mixture, unless that was done before, and measure its losses.

    Attributes:
        plan: on one rank.
        weights: shares in the order of the catalog's sources.
        names: targets of the catalog to measure.
        half: of the held-out data.
        num_sequences: of each target.
        checkpoint_interval: steps between checkpoints; None for one every five minutes.
    """

    plan: ProxyPlan
    weights: tuple[float, ...]
    seed: int
    names: tuple[str, ...]
    half: Half
    num_sequences: int
    checkpoint_interval: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of its training."""
        return self.plan.training.num_tokens

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""
        identity = {**training_identity(self.plan), "weights": list(self.weights), "seed": self.seed}
        return Workdir(self.plan.catalog.root).compare.run(short_hash(identity))

    def finished(self) -> ProxyResult | None:
        """The result, if run and losses are on disk."""
        folder = self.folder
        record = _read_record(folder)
        if record is None or self.unmeasured:
            return None
        known = _read_losses(folder).get(self._losses_key, {})
        return ProxyResult(int(record["num_tokens"]), float(record["seconds"]), {name: known[name] for name in self.names})

    def result(self) -> ProxyResult:
        """The result of a job that was done."""
        found = self.finished()
        assert found is not None
        return found

    def run(self, on_tokens: OnTokens) -> ProxyResult:
        """Do what is missing, in a process group of one rank.

        Args:
            on_tokens: told the tokens of each step.

        Raises:
            FastmixError: the proxy's loss is not finite.
        """
        done = self.finished()
        if done is not None:
            on_tokens(self.num_tokens)
            return done
        plan = on_a_worker(self.plan)
        if self.is_trained:
            engine = plan.build_engine(seed=0, parameters=self.folder.proxy)
            on_tokens(self.num_tokens)
        else:
            per_step = plan.training.tokens_per_step
            kept = CheckpointPlan(self.folder.checkpoints, {"proxy": self.folder.root.name}, self.checkpoint_interval)
            plain = train_on_mixture(
                plan, np.array(self.weights), seed=self.seed, on_step=lambda *_: on_tokens(per_step), kept=kept
            )
            self.keep_proxy(plain.save, seconds=plain.seconds)
            kept.discard()
            engine = plain.engine
        found: dict[str, float] = {}
        for name in self.unmeasured:  # one at a time: the sample of a target must not depend on the others
            found |= target_losses(engine, plan, names=[name], half=self.half, num_sequences=self.num_sequences)
        engine.close()
        self.keep_losses(found)
        return self.result()

    @property
    def is_trained(self) -> bool:
        """Whether the proxy is on disk."""
        return _read_record(self.folder) is not None

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Targets whose losses are not on disk."""
        known = _read_losses(self.folder).get(self._losses_key, {})
        return tuple(name for name in self.names if name not in known)

    def keep_proxy(self, save: Callable[[Path], None], *, seconds: float) -> None:
        """Put a trained proxy on disk, and then what it cost.

        Args:
            save: writes the parameters, from which `ProxyPlan.build_engine` makes the proxy again.
            seconds: of its training.
        """
        folder = self.folder
        folder.root.mkdir(parents=True, exist_ok=True)
        partial = folder.proxy.with_name(f"{folder.proxy.name}{PARTIAL_SUFFIX}")
        save(partial)
        partial.replace(folder.proxy)
        fsync_directory(folder.root)
        weights = dict(zip(self.plan.catalog.sources, self.weights, strict=True))
        cost = {"num_tokens": self.num_tokens, "seconds": round(seconds, 3)}
        write_json(folder.record, {"weights": weights, "seed": self.seed, **cost})

    def keep_losses(self, found: dict[str, float]) -> None:
        """Put losses of targets on disk, beside those that are there."""
        losses = _read_losses(self.folder)
        losses.setdefault(self._losses_key, {}).update(found)
        write_json(self.folder.losses, losses)

    @property
    def _losses_key(self) -> str:
        return f"{self.half}, {self.num_sequences} sequences"


def unfinished(jobs: Sequence[ProxyJob]) -> list[ProxyJob]:
    """Those that have something left to do, each run once."""
    left = {job.folder.root: job for job in jobs if job.finished() is None}
    return list(left.values())


def _read_record(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.record.exists():
        return None
    record = read_json(folder.record)
    if not isinstance(record, dict) or not {"num_tokens", "seconds"} <= record.keys() or not folder.proxy.exists():
        raise CorruptArtefactError(folder.root, "not a complete run", "delete it and run `fastmix compare` again")
    return record


def _read_losses(folder: RunFolder) -> dict[str, dict[str, float]]:
    return dict(read_json(folder.losses)) if folder.losses.exists() else {}
