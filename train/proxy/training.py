"""Training a proxy on a mixture: the one loop, which the search, trials, reference runs, confirmations and baselines all run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastmix_data.arrays import Bools, Float64s, Int64s
from fastmix_data.errors import FastmixError, Interrupted, RecipeError
from fastmix_data.loading.read_ahead import read_ahead
from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.remote.shard_store import is_on_one_machine
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import SequenceReader
from fastmix_data.shards.table_rows import column_of
from train.checkpoints.checkpoints import CheckpointPlan, Checkpoints
from train.checkpoints.tensor_files import Runs
from train.proxy.engine import ProxyEngine
from train.proxy.losses import HostBatch, ModelInputs, device_batch, host_batch
from train.proxy.model import build_proxy, proxy_config

_MOST_LEFT_OVER = 0.045  # of the sequences trained on, what may be fetched for nothing
_PASSES_AHEAD = 8  # that a thread reads before they are trained on


@dataclass(frozen=True)
class ProxyPlan:
    """What the proxies of a run have in common: data, model, and how they are trained. It can be sent to other processes.

    Attributes:
        base: folder that a relative path of a checkpoint starts from.
        production_tokens: of the production run, where the proxy is to repeat data as often as that will; else None.
    """

    catalog: Catalog
    proxy: ProxySection
    base: Path
    training: TrainingSection
    deepspeed: DeepspeedSection
    production_tokens: int | None = None

    @property
    def share_seen(self) -> float:
        """Part of every source's sequences that the proxy may see: its own tokens over production's, where that matters."""
        return 1.0 if self.production_tokens is None else min(1.0, self.training.num_tokens / self.production_tokens)

    @cached_property
    def config(self) -> Any:
        """The model's configuration; see `proxy_config` for what it raises."""
        return proxy_config(
            self.proxy,
            base=self.base,
            vocab_size=self.catalog.info.vocab_size,
            sequence_length=self.training.sequence_length,
        )

    def with_steps(self, num_steps: int) -> ProxyPlan:
        """The same proxy, trained for another number of steps."""
        return replace(self, training=self.training.with_steps(num_steps))

    def on_one_rank(self) -> ProxyPlan:
        """Without ZeRO, unless it offloads."""
        return replace(self, deepspeed=self.deepspeed.on_one_rank())

    def build_model(self, *, seed: int) -> nn.Module:
        """The bare model, its fresh weights fixed by the seed."""
        return build_proxy(self.proxy, config=self.config, base=self.base, seed=seed)

    def build_engine(self, *, seed: int, parameters: Path | None = None, whole_logits: bool = False) -> ProxyEngine:
        """A fresh proxy, or one with parameters that `PlainRun.save` wrote, on all ranks of the process group together."""
        model = self.build_model(seed=seed)
        if parameters is not None:
            model.load_state_dict(torch.load(parameters, map_location="cpu", weights_only=True))
        size = micro_batch(self.training, dist.get_world_size())
        return ProxyEngine(model, training=self.training, deepspeed=self.deepspeed, micro_batch=size, whole_logits=whole_logits)

    def training_data(self) -> SequenceReader:
        """The sequences that may be trained on.

        Raises:
            InputError: a source is smaller than one sequence.
        """
        return SequenceReader(
            self.catalog,
            sources=self.catalog.sources,
            split="train",
            sequence_length=self.training.sequence_length,
            share_seen=self.catalog.share_of_sample_K(self.share_seen),
            document_attention=self.training.document_attention,
            window=window_read_here(self.training, num_sources=len(self.catalog.sources)),
        )

    @property
    def kept_apart(self) -> dict[str, bool]:
        """What attention has to stay within, as `check_proxy` takes it."""
        has_examples = bool(column_of(self.catalog.rows, "has_mask").any())
        return {"has_examples": has_examples, "document_attention": self.training.document_attention}


def window_read_here(training: TrainingSection, *, num_sources: int) -> int:
    """Neighbouring sequences of a source that may be fetched together, as this machine trains on nearly all of them; else 1."""
    # Of each source, up to a window is left over when training ends; ranks of several machines divide every window among them.
    left_over, drawn = num_sources * training.locality_window, training.num_steps * training.global_batch
    num_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    is_worth_it = is_on_one_machine(num_ranks) and left_over <= _MOST_LEFT_OVER * drawn
    return max(1, training.locality_window) if is_worth_it else 1


def micro_batch(training: TrainingSection, num_ranks: int) -> int:
    """Sequences of one pass on one rank.

    Raises:
        RecipeError: the global batch cannot be divided evenly.
    """
    check_divides("training.global_batch", training.global_batch, num_ranks)
    share = training.global_batch // num_ranks
    size = share if training.micro_batch == "auto" else training.micro_batch
    if share % size:
        over = f"global_batch {training.global_batch} over {num_ranks} ranks"
        raise RecipeError("training.micro_batch", f"{size} does not divide a rank's {share} sequences ({over})", "use a divisor")
    return size


def check_divides(key: str, batch: int, num_ranks: int) -> None:
    """Refuse a batch that cannot be divided over the ranks.

    Raises:
        RecipeError: names the next multiple.
    """
    if batch % num_ranks:
        remedy = f"use a multiple, for example {-(-batch // num_ranks) * num_ranks}"
        raise RecipeError(key, f"{batch} cannot be divided over {num_ranks} ranks", remedy)


def learning_rate_at(step: int, training: TrainingSection) -> float:
    """Linear warm-up to the peak, then cosine down to min_lr_fraction of it; `step` counts from 0."""
    warmup = max(1, round(training.warmup_fraction * training.num_steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, training.num_steps - warmup)
    scale = training.min_lr_fraction + (1 - training.min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
    return training.learning_rate * scale


def loss_factor(weights_NK: Float64s, *, mean_loss_tokens_K: Float64s, training: TrainingSection) -> Float64s:
    """Factor of the summed token losses of a batch that was drawn by a mixture of shape (K,), or by each of N mixtures, shape (N, K)."""
    # What is drawn by the weights is not weighted again, but each batch is divided by the loss tokens it has in expectation.
    factor_N: Float64s = 1 / (training.global_batch * (weights_NK @ mean_loss_tokens_K))
    return factor_N


def not_finite(training: TrainingSection, *, step: int | None = None) -> FastmixError:
    """The error for a proxy that diverged."""
    at = "" if step is None else f" at step {step}"
    return FastmixError("", f"the proxy's loss is not finite{at}", f"lower training.learning_rate (now {training.learning_rate})")


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one pass on this rank: inputs, labels (B, T), and for each sequence the index of its source."""

    inputs: ModelInputs
    labels_BT: Tensor
    source_B: Int64s
    carries_loss_BT: Bools

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and tokens of each: (B, T)."""
        batch, length = self.labels_BT.shape
        return batch, length

    @property
    def num_loss_tokens_B(self) -> Int64s:
        """Labels of each sequence that carry loss."""
        counts_B: Int64s = self.carries_loss_BT.sum(axis=1)
        return counts_B


class _ReadPass(NamedTuple):
    """The sequences of one pass in the CPU's memory."""

    batch: HostBatch
    source_B: Int64s
    carries_loss_BT: Bools

    def on_device(self, device: torch.device) -> MicroBatch:
        inputs, labels_BT = device_batch(self.batch, device=device)
        return MicroBatch(inputs, labels_BT, self.source_B, self.carries_loss_BT)


class MixtureTraining:
    """A proxy in training on sequences that are drawn from the sources by shares which may change at every step.

    Attributes:
        reader: of the training data.
        sampler: plans every global batch, whatever the number of ranks; it stands after what was trained on, not after what was read.
        step: optimiser steps done.
    """

    def __init__(self, plan: ProxyPlan, engine: ProxyEngine, *, seed: int) -> None:
        """Start at step 0.

        Raises:
            InputError: a source is smaller than one sequence.
        """
        self._training, self._engine = plan.training, engine
        self.reader = plan.training_data()
        self.sampler = MixtureSampler(
            self.reader.num_sequences_K,
            sources=plan.catalog.sources,
            global_batch=plan.training.global_batch,
            seed=seed,
            fingerprint=plan.catalog.fingerprint,
            window=plan.training.locality_window,
        )
        self.step = 0
        self._ahead: Generator[tuple[_ReadPass, MixtureSampler]] | None = None
        self._ahead_until, self._ahead_K = 0, np.zeros(0)

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        return learning_rate_at(self.step, self._training)

    def train_step(self, sampled_K: Float64s, train_on: Callable[[MicroBatch], None], *, steps_alike: int = 1) -> None:
        """One optimiser step.

        Args:
            sampled_K: shares that sequences are drawn by, shape (K,).
            train_on: makes the forward and the backward pass of a micro-batch.
            steps_alike: steps, this one included, that are certain to draw by these shares; with several, a thread reads ahead what
                they train on. Later ones of them may be asked for with any number.
        """
        engine, learning_rate = self._engine, self.learning_rate
        if self._ahead is None:
            batches = self._read(sampled_K, num_steps=steps_alike)
            self._ahead = read_ahead(batches, depth=_PASSES_AHEAD) if steps_alike > 1 else batches
            self._ahead_until, self._ahead_K = self.step + steps_alike, sampled_K
        assert np.array_equal(sampled_K, self._ahead_K), "the shares changed within steps that were to be alike"
        try:
            for number in range(engine.num_micro_batches):
                batch, sampler = next(self._ahead)
                train_on(batch.on_device(engine.device))
                engine.step(learning_rate, last_micro_batch=number == engine.num_micro_batches - 1)
        except BaseException:
            self.stop_reading()
            raise
        self.sampler = sampler
        self.step += 1
        if self.step == self._ahead_until:
            self.stop_reading()

    def stop_reading(self) -> None:
        """End the thread that reads ahead, if there is one; what it has read is forgotten."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _read(self, sampled_K: Float64s, *, num_steps: int) -> Generator[tuple[_ReadPass, MixtureSampler]]:
        """Passes of this rank from the step to come on, each with the sampler as it is after the step."""
        engine, sampler = self._engine, self.sampler
        is_cuda = engine.device.type == "cuda"
        if is_cuda:
            # A thread starts on GPU 0, where pinning memory would make every rank a context.
            torch.cuda.set_device(engine.device)
        for _ in range(num_steps):
            sampler = sampler.copy()  # a checkpoint must not count what is read and not yet trained on
            mine = sampler.next(sampled_K).slice(engine.rank, engine.world_size)
            for number in range(engine.num_micro_batches):
                part = mine.slice(number, engine.num_micro_batches)
                sequences = self.reader.read(part.source_B, part.sequence_B)
                yield _ReadPass(host_batch(sequences, pinned=is_cuda), part.source_B, sequences.carries_loss_BT), sampler

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, the same on all ranks."""
        return {"step": self.step, "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.step = int(state["step"])
        self.sampler.load_state_dict(state["sampler"])


class Carried(Protocol):
    """What is kept in the checkpoints of a proxy beside it."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, the same on all ranks."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        ...


@dataclass(frozen=True)
class PlainRun:
    """A proxy trained on a fixed mixture.

    Attributes:
        engine: the trained proxy; whoever asked for it closes it.
        seconds: time of training, set-up left out.
    """

    engine: ProxyEngine
    seconds: float

    def save(self, path: Path) -> None:
        """Write the parameters, from which `ProxyPlan.build_engine` makes the proxy again."""
        torch.save(self.engine.module.state_dict(), path)


def train_on_mixture(
    plan: ProxyPlan,
    weights_K: Float64s,
    *,
    seed: int,
    on_step: Callable[[int, ProxyEngine], None] | None = None,
    kept: CheckpointPlan | None = None,
    carried: Carried | None = None,
) -> PlainRun:
    """Train a fresh proxy on fixed weights, on all ranks of the process group together, or go on with one that was stopped.

    Sequences are drawn by the weights; model, initial weights, learning rate and batch are those of a search with this seed, and so is
    the part of the sources that is seen with match_repetition.

    Args:
        weights_K: shares of tokens in the order of the catalog's sources, shape (K,).
        seed: fixes the proxy's initial weights and the order of the data; replaces the plan's.
        on_step: called on every rank after each optimiser step with the number of steps done; its time is not training time. Where it
            raises `Interrupted`, which it must do on all ranks at one step, the proxy is saved first.
        kept: where the proxy is saved while it is trained; whoever has used the trained one discards it.
        carried: what `on_step` gathers, which is saved and restored with the proxy.

    Raises:
        FastmixError: the loss is not finite.
    """
    engine = plan.build_engine(seed=seed)
    run = MixtureTraining(plan, engine, seed=seed)
    checkpoints = Checkpoints(kept, engine) if kept is not None else None
    saved = checkpoints.resume() if checkpoints is not None else None
    seconds_before = 0.0
    if saved is not None:
        run.load_state_dict(saved.state["training"])
        seconds_before = saved.state["seconds"]
        if carried is not None:
            carried.load_state_dict(saved.state["carried"])
    factor = float(loss_factor(weights_K, mean_loss_tokens_K=run.reader.mean_loss_tokens_K, training=plan.training))
    loss = torch.zeros(())

    def train_on(batch: MicroBatch) -> None:
        nonlocal loss
        loss = engine.sequence_losses(batch.inputs, batch.labels_BT).sum() * factor
        engine.backward(loss)

    started, seconds_paused = time.monotonic(), 0.0

    def seconds() -> float:
        return float(seconds_before) + time.monotonic() - started - seconds_paused

    def state() -> tuple[dict[str, Any], Runs]:
        own = carried.state_dict() if carried is not None else {}
        return {"training": run.state_dict(), "seconds": seconds(), "carried": own}, {}

    with checkpoints or nullcontext():
        while run.step < plan.training.num_steps:
            run.train_step(weights_K, train_on, steps_alike=plan.training.num_steps - run.step)
            try:
                if on_step is not None:
                    paused = time.monotonic()
                    on_step(run.step, engine)
                    seconds_paused += time.monotonic() - paused
            except Interrupted:
                run.stop_reading()
                if checkpoints is not None:
                    checkpoints.save(run.step, state)
                raise
            if checkpoints is not None and checkpoints.looks_at(run.step) and run.step < plan.training.num_steps:
                checkpoints.after_step(run.step, state)
        if checkpoints is not None:
            checkpoints.finish()
    if not np.isfinite(float(engine.sum_over_ranks(loss.detach()))):
        raise not_finite(plan.training)
    return PlainRun(engine, seconds())
